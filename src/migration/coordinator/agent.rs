use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::driver::Driver;
use super::follower::Follower;
use super::options::DriverOptions;
use super::spec::{self, MigrationSpec};
use crate::config::ConfigError;
use crate::fleet::Fleet;
use crate::health::{Criticality, Health};
use crate::ledger::plans::{self, PublishedPlan};
use crate::ledger::{LedgerError, describe_error, migrations as migrations_table};
use crate::migration::runtime::Migration;

/// How often [`Agent::admitted`] checks the gates.
const ADMISSION_CHECK: Duration = Duration::from_millis(20);

/// This instance's part in its fleet's migrations.
///
/// It runs two background tasks. One follows the ledger, adopts new epochs and acknowledges them. The other drives the
/// migrations while this instance is their leader.
///
/// It also decides whether this instance is admitted: a build whose declared range lacks a phase in use, or that does
/// not declare a running migration, is not. Such an instance stays unready, with the reason in its health report, and
/// no move waits for it.
#[derive(Debug)]
pub struct Agent {
    fleet: Fleet,
    migrations: Arc<[(MigrationSpec, Migration)]>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.halt();
        // Nothing acknowledges for this instance any more, so it must not count as alive.
        self.fleet.stop();
    }
}

impl Agent {
    /// Registers the migrations in the ledger where they are new, and starts the background tasks.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Config`] with every declaration and option that cannot be used, [`LedgerError::Database`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a registration is idempotent.
    pub async fn start(
        fleet: Fleet,
        specs: Vec<MigrationSpec>,
        options: DriverOptions,
        health: &Health,
    ) -> Result<Self, LedgerError> {
        let mut problems = Vec::new();
        spec::check(&specs, &mut problems);
        options.check(&mut problems);
        ConfigError::check(problems)?;
        let mut migrations = Vec::new();
        for spec in specs {
            let mut tx = fleet.ledger().begin().await?;
            let id = migrations_table::register(&mut tx, fleet.name(), &spec.name).await?;
            tx.commit().await?;
            if let Err(error) = publish(&fleet, id, &spec).await {
                let error = describe_error(&error);
                tracing::warn!(error, migration = spec.name, "could not publish the plan in the ledger");
            }
            let columns = spec.plan.as_ref().and_then(|plan| plan.mirrored_columns());
            let migration = Migration::new(&spec.name, id, fleet.lease().clone(), columns);
            migrations.push((spec, migration));
        }
        let migrations: Arc<[_]> = migrations.into();
        let guard = health.signal("deploy_guard", Criticality::Degrades);
        guard.fail("not admitted to the fleet yet");
        let notifications = health.signal("ledger_notifications", Criticality::Degrades);
        let follower = Follower::new(fleet.clone(), migrations.clone(), guard, notifications);
        let driving = health.signal("migrations", Criticality::Degrades);
        let driver = Driver::new(fleet.clone(), &migrations, options, driving);
        let tasks = vec![tokio::spawn(follower.run()), tokio::spawn(driver.run())];
        Ok(Self { fleet, migrations, tasks })
    }

    /// The migration of this name, if this build declared it.
    pub fn migration(&self, name: &str) -> Option<Migration> {
        self.migrations.iter().find(|(spec, _)| spec.name == name).map(|(_, migration)| migration.clone())
    }

    /// The migrations that this build declared.
    pub fn migrations(&self) -> impl Iterator<Item = &Migration> {
        self.migrations.iter().map(|(_, migration)| migration)
    }

    /// Waits until this instance is admitted to the fleet, so that operations can begin.
    ///
    /// It waits as long as this build cannot run the current phases. Later the lease can expire; operations then fail
    /// with [`Error::NotInFleet`](crate::migration::Error::NotInFleet) until the instance has rejoined.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it only waits.
    pub async fn admitted(&self) {
        while self.migrations().any(|migration| migration.current().is_none()) {
            tokio::time::sleep(ADMISSION_CHECK).await;
        }
    }

    /// Registers the metrics of each migration in a registry: `cutover_migration_…{migration}` and `cutover_side_…{migration}`.
    /// The guide's page about metrics lists them.
    ///
    /// # Errors
    ///
    /// The registry's error if a name is taken.
    pub fn register(&self, registry: &prometheus::Registry) -> Result<(), prometheus::Error> {
        let version = self.fleet.release().version();
        self.migrations().try_for_each(|migration| migration.register(registry, version))
    }

    /// Leaves the fleet. No operation begins after that.
    ///
    /// Call it when no operation is running any more.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Database`] if the ledger could not be updated. The lease then expires.
    ///
    /// # Cancel safety
    ///
    /// This instance stops at once, also if the future is dropped.
    pub async fn leave(&self) -> Result<(), LedgerError> {
        self.halt();
        self.fleet.leave().await
    }

    fn halt(&self) {
        for task in &self.tasks {
            task.abort();
        }
        for migration in self.migrations() {
            migration.gate().shut();
        }
    }
}

/// What a build would execute, for people to read.
async fn publish(fleet: &Fleet, migration: i32, spec: &MigrationSpec) -> Result<(), sqlx::Error> {
    let tasks = match &spec.plan {
        Some(plan) => plan.sql_of_database().await,
        None => Vec::new(),
    };
    let files = spec.plan.as_ref().map(|plan| plan.files()).unwrap_or_default();
    let files = files.into_iter().map(|(task, sql)| (plans::file_of(task.name()), sql));
    let tasks: Vec<(String, String)> =
        tasks.into_iter().map(|(task, sql)| (task.name().to_owned(), sql)).chain(files).collect();
    let tasks = serde_json::to_string(&tasks).map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
    let old_side = spec.plan.as_ref().and_then(|plan| plan.old_side());
    let plan = PublishedPlan {
        migration,
        version: fleet.release().version(),
        has_plan: spec.plan.is_some(),
        tasks: &tasks,
        old_table: old_side.as_ref().map(|old_side| &*old_side.table),
        old_columns: old_side.as_ref().map_or(&[], |old_side| &*old_side.columns),
        desired_from: spec.desired.actor(),
    };
    plans::publish(fleet.ledger(), &plan).await
}
