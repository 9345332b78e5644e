use std::sync::Arc;

use sqlx::PgConnection;
use tokio::task::JoinHandle;

use super::driver::{Driver, DriverOptions};
use super::follower::Follower;
use super::publish;
use super::spec::MigrationSpec;
use crate::fleet::Fleet;
use crate::health::{Criticality, Health};
use crate::ledger::{LedgerError, unprepared};
use crate::migration::runtime::Migration;

/// This instance's part in its fleet's migrations, kept by two background tasks: one follows the ledger, takes
/// on new epochs and acknowledges them; the other drives, while this instance holds that office.
///
/// It is also the deploy guard: a build whose declared range lacks a phase in use, or that does not know a
/// migration under way, is not admitted. It stays unready, with the reason in its health report, and nobody
/// waits for it.
#[derive(Debug)]
pub struct Agent {
    fleet: Fleet,
    migrations: Arc<[(MigrationSpec, Migration)]>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.halt();
        // Nobody acknowledges for this instance any more: it must not count as alive for ever.
        self.fleet.stop();
    }
}

impl Agent {
    /// Enters the migrations into the ledger where they are new, and starts to take part.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Option`] for a name that can't be used or is there twice and for a driver's term that is too
    /// short, [`LedgerError::Database`].
    ///
    /// # Cancel safety
    ///
    /// Safe: entering a migration is idempotent.
    pub async fn start(
        fleet: Fleet,
        specs: Vec<MigrationSpec>,
        options: DriverOptions,
        health: &Health,
    ) -> Result<Self, LedgerError> {
        check(&specs)?;
        options.check()?;
        let ledger = fleet.ledger();
        let mut migrations = Vec::new();
        for spec in specs {
            let mut tx = ledger.begin().await?;
            let id = register(&mut tx, fleet.name(), &spec.name).await?;
            tx.commit().await?;
            let published = publish::publish(ledger, id, fleet.release().version(), &spec).await;
            if let Err(error) = published {
                tracing::warn!(%error, migration = spec.name, "the plan could not be published for people to read");
            }
            let migration = Migration::new(&spec.name, id, fleet.lease().clone());
            migrations.push((spec, migration));
        }
        let migrations: Arc<[_]> = migrations.into();
        let guard = health.signal("deploy_guard", Criticality::Critical);
        guard.fail("not admitted to the fleet yet");
        let hearing = health.signal("ledger_notifications", Criticality::Degrades);
        let follower = Follower::new(fleet.clone(), migrations.clone(), guard, hearing);
        let driver = Driver::new(fleet.clone(), migrations.clone(), options);
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

    /// Shows `cutover_migration_rows_done_total{migration,kind}`, `cutover_migration_rows_expected{migration,kind}`,
    /// `cutover_migration_throttled_seconds_total{migration,kind,reason}` and `cutover_migration_shadow_reads_total{migration,outcome}` in a
    /// registry.
    ///
    /// # Errors
    ///
    /// The registry's, when a name is taken.
    pub fn register(&self, registry: &prometheus::Registry) -> Result<(), prometheus::Error> {
        self.migrations().try_for_each(|migration| migration.work().register(registry))
    }

    /// Stops taking part: no operation begins any more, and the fleet is left.
    ///
    /// Call it when no operation is running any more.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Database`] when the fleet could not be told; the lease then runs out.
    ///
    /// # Cancel safety
    ///
    /// This instance stops at once, whatever becomes of the future.
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

pub(crate) fn check(specs: &[MigrationSpec]) -> Result<(), LedgerError> {
    for (index, spec) in specs.iter().enumerate() {
        let problem = if spec.name.is_empty() || spec.name.len() > 63 {
            "has to be 1 to 63 bytes long"
        } else if specs[..index].iter().any(|earlier| earlier.name == spec.name) {
            "is declared twice"
        } else {
            continue;
        };
        let problem = format!("{:?} {problem}", spec.name);
        return Err(LedgerError::Option { field: "migration.name", problem });
    }
    Ok(())
}

/// The migration's number; a new one begins at epoch 1 in `off`.
pub(crate) async fn register(tx: &mut PgConnection, fleet: &str, name: &str) -> Result<i32, sqlx::Error> {
    // Usually it is there, and a start waits for nobody's lock.
    if let Some(id) = number_of(tx, fleet, name).await? {
        return Ok(id);
    }
    unprepared::query("select name from cutover.fleets where name = $1 for no key update")
        .bind(fleet)
        .execute(&mut *tx)
        .await?;
    if let Some(id) = number_of(tx, fleet, name).await? {
        return Ok(id);
    }
    let id =
        unprepared::query_scalar("insert into cutover.migrations (fleet, name) values ($1, $2) returning id")
            .bind(fleet)
            .bind(name)
            .fetch_one(&mut *tx)
            .await?;
    unprepared::query(
        "insert into cutover.epochs (migration_id, epoch, phase, actor, reason) \
         values ($1, 1, 'off', 'cutover', 'first declared')",
    )
    .bind(id)
    .execute(&mut *tx)
    .await?;
    Ok(id)
}

async fn number_of(tx: &mut PgConnection, fleet: &str, name: &str) -> Result<Option<i32>, sqlx::Error> {
    unprepared::query_scalar("select id from cutover.migrations where fleet = $1 and name = $2")
        .bind(fleet)
        .bind(name)
        .fetch_optional(tx)
        .await
}
