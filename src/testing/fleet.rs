//! A fleet of one instance that moves a migration.

use std::time::Duration;

use sqlx::PgPool;
use tokio::time::{Instant, sleep, timeout};

use super::direction::Direction;
use crate::fleet::{Fleet, FleetOptions};
use crate::health::Health;
use crate::ledger::{Ledger, literal, unprepared};
use crate::migration::admin::{self, MigrationReport};
use crate::migration::{
    Agent, Desired, DriverOptions, FromLedger, Migration, MigrationSpec, OldSide, Phase, PhaseRange,
};
use crate::release::Release;

/// The name of the fleet and of its service, and the actor of what it does.
const NAME: &str = "cutover-testing";

/// How often the state is read.
const CHECK: Duration = Duration::from_millis(15);

/// External writes that cannot be copied come from the code under test only.
const QUIET_PERIOD: Duration = Duration::from_millis(200);

/// How many rows a failure names.
const ROWS: u32 = 5;

/// A fleet of one instance.
#[derive(Debug)]
pub(super) struct TestFleet {
    pool: PgPool,
    ledger: Ledger,
    agent: Agent,
    /// The migration that it moves, with its fleet.
    name: String,
    old_side: Option<OldSide>,
    migration: Option<Migration>,
    limit: Duration,
}

impl TestFleet {
    /// Installs the ledger and joins. The error is a text.
    pub(super) async fn start(
        pool: &PgPool,
        spec: MigrationSpec,
        others: Vec<MigrationSpec>,
        limit: Duration,
    ) -> Result<Self, String> {
        let old_side = spec.plan.as_ref().and_then(|plan| plan.old_side());
        let name = spec.name.clone();
        let specs: Vec<MigrationSpec> = std::iter::once(spec).chain(others).map(for_test).collect();
        let begin = async {
            let release = Release::new(NAME, "test").map_err(|error| error.to_string())?;
            let options = (*pool.connect_options()).clone();
            let ledger = Ledger::open(options).await.map_err(|error| error.to_string())?;
            let health = Health::new();
            let fleet = Fleet::join(ledger.clone(), &release, FleetOptions::default(), &health).await;
            let fleet = fleet.map_err(|error| error.to_string())?;
            let agent = Agent::start(fleet, specs, DriverOptions::default(), &health).await;
            Ok((ledger, agent.map_err(|error| error.to_string())?))
        };
        let (ledger, agent) = timeout(limit, begin)
            .await
            .unwrap_or_else(|_| Err(format!("the database did not answer within {limit:?}")))?;
        let migration = agent.migration(&name);
        let name = format!("{NAME}/{name}");
        let fleet = Self { pool: pool.clone(), ledger, agent, name, old_side, migration, limit };
        if timeout(limit, fleet.agent.admitted()).await.is_err() {
            let refusal =
                fleet.report().await.ok().and_then(|report| report.instances.first()?.refusal.clone());
            let refusal = refusal.unwrap_or_else(|| "no reason is known".to_owned());
            return Err(format!("the instance was not admitted within {limit:?}: {refusal}"));
        }
        Ok(fleet)
    }

    pub(super) fn migration(&self, name: &str) -> Option<Migration> {
        self.agent.migration(name)
    }

    /// Moves the migration, and waits until the work of its new phase has ended. The error says what it waits for.
    pub(super) async fn go(&self, to: Desired, direction: Direction) -> Result<(), String> {
        let text = |error: admin::AdminError| error.to_string();
        if to.phase == Phase::Contract {
            admin::approve(&self.ledger, &self.name, admin::Actor::with_reason(NAME, "a test"))
                .await
                .map_err(text)?;
        }
        admin::set_phase(&self.ledger, &self.name, to, NAME).await.map_err(text)?;
        let end = Instant::now() + self.limit;
        loop {
            let report = self.report().await?;
            if let Some(obstacle) = self.obstacle(&report).await? {
                return Err(obstacle);
            }
            if self.has_arrived(&report, to, direction).await? {
                return Ok(());
            }
            if Instant::now() > end {
                let waits_for = report.waits_for.unwrap_or_else(|| "nothing that is known".to_owned());
                return Err(format!(
                    "not reached within {:?} (`EveryPhase::limit`): in `{}`, waiting for {waits_for}",
                    self.limit, report.phase
                ));
            }
            sleep(CHECK).await;
        }
    }

    async fn report(&self) -> Result<MigrationReport, String> {
        let reports =
            admin::report(&self.ledger, Some(&self.name)).await.map_err(|error| error.to_string())?;
        reports.into_iter().next().ok_or_else(|| format!("migration {} is not in the ledger", self.name))
    }

    async fn has_arrived(
        &self,
        report: &MigrationReport,
        to: Desired,
        direction: Direction,
    ) -> Result<bool, String> {
        let adopted = self.migration.as_ref().and_then(|migration| {
            let pin = migration.pin().ok()?;
            Some(pin.epoch() == report.epoch && (to.phase != Phase::Ramp || pin.ramp() == to.ramp))
        });
        if report.phase != to.phase.name() || adopted != Some(true) {
            return Ok(false);
        }
        match to.phase {
            // What the code under test writes after the copy is not corrected by it, and the scan compares it.
            Phase::Backfill | Phase::Verify if direction == Direction::Forward => {
                Ok(report.work.as_ref().is_some_and(|work| {
                    let kind = if to.phase == Phase::Backfill { "backfill" } else { "scan" };
                    work.kind == kind
                        && work.ended_seconds.is_some_and(|ended| ended < report.phase_age_seconds)
                }))
            }
            Phase::Contract => Ok(!self.has_old_side().await?),
            _ => Ok(true),
        }
    }

    /// What keeps the migration from moving and does not pass by itself.
    async fn obstacle(&self, report: &MigrationReport) -> Result<Option<String>, String> {
        let text = |error: admin::AdminError| error.to_string();
        if report.work.as_ref().is_some_and(|work| work.kind == "scan" && work.differences > 0) {
            let found = admin::differences(&self.ledger, &self.name, ROWS).await.map_err(text)?;
            let describe = |row: &admin::Difference| {
                let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "no row".to_owned());
                let key = row.key.join(", ");
                format!(
                    "row {key} ({}): expected {}, found {}",
                    row.what,
                    value(&row.expected),
                    value(&row.found)
                )
            };
            let rows: Vec<String> = found.iter().map(describe).collect();
            return Ok(Some(format!("the two sides differ: {}", rows.join("; "))));
        }
        let bad = admin::bad_rows(&self.ledger, &self.name, ROWS).await.map_err(text)?;
        let rows: Vec<String> =
            bad.iter().map(|row| format!("row {}: {}", row.key.join(", "), row.error)).collect();
        Ok((!rows.is_empty()).then(|| format!("rows cannot be mapped: {}", rows.join("; "))))
    }

    /// Whether the old side still exists.
    async fn has_old_side(&self) -> Result<bool, String> {
        let Some(old_side) = &self.old_side else { return Ok(false) };
        let columns = literal::texts(&old_side.columns);
        let exists = format!(
            "select exists (select from pg_attribute where attrelid = to_regclass({}) and not attisdropped \
                 and (cardinality({columns}) = 0 or attname = any ({columns})))",
            literal::text(&old_side.table)
        );
        unprepared::ask_scalar(&self.pool, exists).await.map_err(|error| error.to_string())
    }

    /// Leaves the fleet. The database can be dropped afterwards.
    pub(super) async fn leave(self) {
        // If the database is unreachable, the lease expires.
        let _ = self.agent.leave().await;
    }
}

/// The declaration, with everything that waits for time or for other servers taken out.
fn for_test(spec: MigrationSpec) -> MigrationSpec {
    let spec = MigrationSpec { range: PhaseRange::FULL, standbys: Vec::new(), ..spec };
    spec.soak(Duration::ZERO).external_write_quiet_period(QUIET_PERIOD).desired(FromLedger)
}
