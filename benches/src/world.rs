use std::time::Duration;

use anyhow::{Context, Result};
use cutover::fleet::{Fleet, FleetOptions};
use cutover::health::Health;
use cutover::ledger::Ledger;
use cutover::migration::{Agent, DriverOptions, Migration, MigrationSpec};
use cutover::migration::{Phase, PhaseRange};
use cutover::release::Release;
use cutover_testkit::{Postgres, PostgresOptions, wait_until};
use sqlx::PgPool;

pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// A Postgres server with fsync on.
pub(crate) async fn server(settings: &[(&str, &str)]) -> Result<Postgres> {
    let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Ok(Postgres::start(PostgresOptions { fsync: true, settings }).await?)
}

/// One simulated instance with one migration.
pub(crate) struct Instance {
    pub(crate) migration: Migration,
    _agent: Agent,
}

impl Instance {
    pub(crate) async fn start(ledger: Ledger, name: String) -> Result<Self> {
        let spec = MigrationSpec::new("bench", PhaseRange::FULL).soak(Duration::ZERO);
        Self::with(ledger, name, spec).await
    }

    /// With migration `bench` as described.
    pub(crate) async fn with(ledger: Ledger, name: String, spec: MigrationSpec) -> Result<Self> {
        let release = Release::new("bench", "stable")?.with_instance(&name)?;
        let health = Health::new();
        let fleet = Fleet::join(ledger, &release, FleetOptions::default(), &health).await?;
        let agent = Agent::start(fleet, vec![spec], DriverOptions::default(), &health).await?;
        let migration = agent.migration("bench").context("declared")?;
        Ok(Self { migration, _agent: agent })
    }

    /// Moves to a phase, and marks the work on rows on the way there as done, because there is no data.
    pub(crate) async fn go(&self, ledger: &PgPool, target: &str) -> Result<()> {
        let phase = target.split(':').next().unwrap_or(target).parse()?;
        let ask = "update cutover.migrations set desired = $1, new_complete = phase not in ('off', 'expand')";
        let scanned = "insert into cutover.jobs (migration_id, kind, epoch, finished_at) \
            select id, 'scan', epoch, clock_timestamp() from cutover.migrations";
        let arrived = async || {
            sqlx::query(ask).bind(target).execute(ledger).await?;
            sqlx::query(scanned).execute(ledger).await?;
            let open = "select count(*) from cutover.epochs where drained_at is null";
            let open: i64 = sqlx::query_scalar(open).fetch_one(ledger).await?;
            anyhow::Ok(self.migration.current().is_some_and(|at| at.1 == phase) && open == 1)
        };
        Ok(wait_until(&format!("arrival at {target}"), LIMIT, arrived).await?)
    }

    pub(crate) async fn at(&self, phase: Phase) -> Result<()> {
        let arrived = async || anyhow::Ok(self.migration.current().is_some_and(|at| at.1 == phase));
        Ok(wait_until(&format!("arrival at {phase}"), LIMIT, arrived).await?)
    }
}

/// A server, its URL, and one instance in `off`.
pub(crate) async fn alone() -> Result<(Postgres, String, Instance)> {
    let postgres = server(&[]).await?;
    let url = postgres.create_database("bench").await?;
    let instance = Instance::start(Ledger::open(url.parse()?).await?, "alone".into()).await?;
    instance.at(Phase::Off).await?;
    Ok((postgres, url, instance))
}
