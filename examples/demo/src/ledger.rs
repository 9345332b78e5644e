//! Observes the migration from outside, through the tables in schema `cutover`.

use std::time::Duration;

use serde::Serialize;
use sqlx::{PgPool, Row};

use crate::failure::{During, Result};

/// What the payments service calls its migrations.
pub(crate) const MIGRATION: &str = "payment-status";
pub(crate) const SECOND_MIGRATION: &str = "payment-code";

/// The eight phases in order.
pub(crate) const PHASES: [&str; 8] =
    ["off", "expand", "backfill", "verify", "ramp", "switch", "retire", "contract"];

/// The migration's current state in the ledger.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Standing {
    pub(crate) phase: String,
    pub(crate) epoch: i32,
    pub(crate) ramp_percent: i16,
    /// All instances work at `epoch`, and no transaction of an older epoch is left.
    pub(crate) is_settled: bool,
    /// What the migration waits for, as the driver reports it.
    pub(crate) waits_for: Option<String>,
    /// The latest backfill or scan.
    pub(crate) job: Option<Job>,
    /// Name and acknowledged epoch of each live instance.
    pub(crate) acknowledged: Vec<(String, i32)>,
}

impl Standing {
    /// Whether the new column holds every row's value: from `ramp` on.
    pub(crate) fn is_new_complete(&self) -> bool {
        matches!(self.phase.as_str(), "ramp" | "switch" | "retire" | "contract")
    }
}

/// A backfill or a scan of the whole table.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Job {
    pub(crate) kind: String,
    pub(crate) rows_done: i64,
    pub(crate) rows_total: i64,
    pub(crate) rows_changed: i64,
    pub(crate) differences: i64,
    pub(crate) took: Duration,
    pub(crate) is_finished: bool,
}

impl Job {
    pub(crate) fn rows_per_second(&self) -> f64 {
        self.rows_done as f64 / self.took.as_secs_f64().max(0.001)
    }
}

/// One migration, through a pool of one or two connections beside the service's.
#[derive(Clone)]
pub(crate) struct Ledger {
    pool: PgPool,
    migration: &'static str,
}

impl Ledger {
    /// The first migration.
    pub(crate) fn new(pool: PgPool) -> Self {
        Self { pool, migration: MIGRATION }
    }

    /// The second one.
    pub(crate) fn second(&self) -> Self {
        Self { pool: self.pool.clone(), migration: SECOND_MIGRATION }
    }

    /// `None` while no instance has declared the migration yet.
    pub(crate) async fn standing(&self) -> Result<Option<Standing>> {
        let exists: bool = sqlx::query_scalar("select to_regclass('cutover.epochs') is not null")
            .fetch_one(&self.pool)
            .await?;
        if !exists {
            return Ok(None);
        }
        let row = sqlx::query(
            "select m.id, m.phase, m.epoch, m.ramp_percent, m.waits_for, not exists (
                 select from cutover.epochs e
                 where e.migration_id = m.id and e.epoch < m.epoch and e.drained_at is null) as is_settled
             from cutover.migrations m where m.name = $1",
        )
        .bind(self.migration)
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let id: i32 = row.try_get("id")?;
        let acknowledged = sqlx::query_as(
            "select i.name, a.epoch from cutover.acknowledgements a
             join cutover.instances i on i.id = a.instance_id
             where a.migration_id = $1 and i.admitted and i.lease_until > clock_timestamp()",
        )
        .bind(id)
        .fetch_all(&self.pool)
        .await?;
        Ok(Some(Standing {
            phase: row.try_get("phase")?,
            epoch: row.try_get("epoch")?,
            ramp_percent: row.try_get("ramp_percent")?,
            is_settled: row.try_get("is_settled")?,
            waits_for: row.try_get("waits_for")?,
            job: self.jobs(id).await?.pop(),
            acknowledged,
        }))
    }

    /// All finished backfills, oldest first.
    pub(crate) async fn finished_backfills(&self) -> Result<Vec<Job>> {
        let id = self.migration().await?;
        let is_wanted = |job: &Job| job.kind == "backfill" && job.is_finished;
        Ok(self.jobs(id).await?.into_iter().filter(is_wanted).collect())
    }

    /// Sets the desired phase by SQL, if there is no Unleash.
    pub(crate) async fn set_phase(&self, phase: &str) -> Result<()> {
        sqlx::query("update cutover.migrations set desired = $2, desired_by = 'demo' where name = $1")
            .bind(self.migration)
            .bind(phase)
            .execute(&self.pool)
            .await
            .during("setting the desired phase")?;
        Ok(())
    }

    /// Approves the drop of the old column.
    pub(crate) async fn approve_contract(&self) -> Result<()> {
        sqlx::query(
            "insert into cutover.approvals (migration_id, phase, actor, reason)
             select id, 'contract', 'demo', 'both columns were compared' from cutover.migrations where name = $1
             on conflict do nothing",
        )
        .bind(self.migration)
        .execute(&self.pool)
        .await
        .during("approving contract")?;
        Ok(())
    }

    async fn migration(&self) -> Result<i32> {
        let id = sqlx::query_scalar("select id from cutover.migrations where name = $1");
        Ok(id.bind(self.migration).fetch_one(&self.pool).await?)
    }

    async fn jobs(&self, migration: i32) -> Result<Vec<Job>> {
        let rows = sqlx::query(
            "select kind, rows_done, rows_total, rows_changed, differences, finished_at is not null as finished,
                 extract(epoch from coalesce(finished_at, clock_timestamp()) - started_at)::float8 as seconds
             from cutover.jobs where migration_id = $1 order by id",
        )
        .bind(migration)
        .fetch_all(&self.pool)
        .await?;
        let job = |row: sqlx::postgres::PgRow| {
            Ok(Job {
                kind: row.try_get("kind")?,
                rows_done: row.try_get("rows_done")?,
                rows_total: row.try_get("rows_total")?,
                rows_changed: row.try_get("rows_changed")?,
                differences: row.try_get("differences")?,
                took: Duration::try_from_secs_f64(row.try_get("seconds")?).unwrap_or_default(),
                is_finished: row.try_get("finished")?,
            })
        };
        rows.into_iter().map(job).collect()
    }
}

#[cfg(test)]
mod tests {
    use cutover_testkit::Postgres;
    use sqlx::{AssertSqlSafe, Executor, postgres::PgPoolOptions};

    use super::*;

    /// A migration that has moved twice, with an unfinished backfill.
    const ROWS: &str = "
        insert into cutover.fleets (name) values ('payments');
        insert into cutover.migrations (fleet, name) values ('payments', 'payment-status');
        insert into cutover.epochs (migration_id, epoch, phase, actor, reason) values (1, 1, 'off', 'a', 'r');
        insert into cutover.epochs (migration_id, epoch, phase, previous_phase, actor, reason)
            values (1, 2, 'expand', 'off', 'a', 'r');
        update cutover.epochs set closed_at = now(), drained_at = now() where epoch = 1;
        insert into cutover.epochs (migration_id, epoch, phase, previous_phase, actor, reason)
            values (1, 3, 'backfill', 'expand', 'a', 'r');
        update cutover.migrations set epoch = 3, phase = 'backfill', waits_for = 'rows';
        insert into cutover.jobs (migration_id, kind, epoch, rows_total, rows_done, started_at)
            values (1, 'backfill', 3, 100, 40, now() - interval '4 seconds');
        insert into cutover.instances (id, fleet, name, service, version, revision, lease_until, admitted)
            values (1, 'payments', 'a', 's', 'v', 'r', now() + interval '1 minute', true),
                   (2, 'payments', 'dead', 's', 'v', 'r', now() - interval '1 minute', true);
        insert into cutover.acknowledgements (instance_id, migration_id, min_phase, max_phase, epoch)
            values (1, 1, 'off', 'contract', 2), (2, 1, 'off', 'contract', 1);";

    #[tokio::test]
    async fn state_is_read_from_and_set_in_the_ledger() {
        let url = Postgres::fresh_database().await.unwrap();
        let ledger = Ledger::new(PgPoolOptions::new().max_connections(1).connect(&url).await.unwrap());
        assert_eq!(ledger.standing().await.unwrap(), None);
        let run = async |sql: &'static str| ledger.pool.execute(AssertSqlSafe(sql)).await.unwrap();
        run(include_str!("../../../src/ledger/schema/1.sql")).await;
        assert_eq!(ledger.standing().await.unwrap(), None);
        run(ROWS).await;

        let standing = ledger.standing().await.unwrap().unwrap();
        assert_eq!((standing.phase.as_str(), standing.epoch, standing.is_settled), ("backfill", 3, false));
        assert_eq!(standing.acknowledged, [("a".to_owned(), 2)]);
        assert_eq!(standing.waits_for.as_deref(), Some("rows"));
        let job = standing.job.unwrap();
        assert_eq!(
            (job.kind.as_str(), job.rows_done, job.rows_total, job.is_finished),
            ("backfill", 40, 100, false)
        );
        assert!((1.0..=10.0).contains(&job.rows_per_second()), "{job:?}");
        assert!(ledger.finished_backfills().await.unwrap().is_empty());

        run("update cutover.epochs set closed_at = now(), drained_at = now() where epoch = 2").await;
        run("update cutover.jobs set rows_done = 100, finished_at = now()").await;
        assert!(ledger.standing().await.unwrap().unwrap().is_settled);
        assert_eq!(ledger.finished_backfills().await.unwrap()[0].rows_done, 100);

        ledger.set_phase("ramp:25").await.unwrap();
        ledger.approve_contract().await.unwrap();
        ledger.approve_contract().await.unwrap();
        let desired: (String, i64) = sqlx::query_as(
            "select desired, (select count(*) from cutover.approvals) from cutover.migrations",
        )
        .fetch_one(&ledger.pool)
        .await
        .unwrap();
        assert_eq!(desired, ("ramp:25".to_owned(), 1));
    }
}
