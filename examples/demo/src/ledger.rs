//! Looks at the migration from outside: what the tables in schema `cutover` say.

use std::time::Duration;

use serde::Serialize;
use sqlx::{PgPool, Row};

use crate::failure::{During, Result};

/// What the payments service calls its migration.
pub(crate) const MIGRATION: &str = "payment-status";

/// The eight phases in their line.
pub(crate) const PHASES: [&str; 8] =
    ["off", "expand", "backfill", "verify", "ramp", "switch", "retire", "contract"];

/// The migration as the ledger has it now.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Standing {
    pub(crate) phase: String,
    pub(crate) epoch: i32,
    pub(crate) ramp_percent: i16,
    /// Everybody works at `epoch`, and no older epoch has a transaction left.
    pub(crate) is_settled: bool,
    /// What the driver waits for, in its words.
    pub(crate) waits_for: Option<String>,
    /// The newest piece of long work.
    pub(crate) job: Option<Job>,
    /// Name and acknowledged epoch of each live instance.
    pub(crate) acknowledged: Vec<(String, i32)>,
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

/// A pool of one or two connections beside the service's.
#[derive(Clone)]
pub(crate) struct Ledger(pub(crate) PgPool);

impl Ledger {
    /// `None` while no instance has declared the migration yet.
    pub(crate) async fn standing(&self) -> Result<Option<Standing>> {
        let exists: bool =
            sqlx::query_scalar("select to_regclass('cutover.epochs') is not null").fetch_one(&self.0).await?;
        if !exists {
            return Ok(None);
        }
        let row = sqlx::query(
            "select m.id, m.phase, m.epoch, m.ramp_percent, m.waits_for, not exists (
                 select from cutover.epochs e
                 where e.migration_id = m.id and e.epoch < m.epoch and e.drained_at is null) as is_settled
             from cutover.migrations m where m.name = $1",
        )
        .bind(MIGRATION)
        .fetch_optional(&self.0)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let id: i32 = row.try_get("id")?;
        let acknowledged = sqlx::query_as(
            "select i.name, a.epoch from cutover.acknowledgements a
             join cutover.instances i on i.id = a.instance_id
             where a.migration_id = $1 and i.admitted and i.lease_until > clock_timestamp()",
        )
        .bind(id)
        .fetch_all(&self.0)
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

    /// All backfills that finished, oldest first.
    pub(crate) async fn finished_backfills(&self) -> Result<Vec<Job>> {
        let id = self.migration().await?;
        let is_wanted = |job: &Job| job.kind == "backfill" && job.is_finished;
        Ok(self.jobs(id).await?.into_iter().filter(is_wanted).collect())
    }

    /// What a person does by SQL where there is no Unleash. `None` takes the wish back.
    pub(crate) async fn desire(&self, phase: &str) -> Result<()> {
        sqlx::query("update cutover.migrations set desired = $2, desired_by = 'demo' where name = $1")
            .bind(MIGRATION)
            .bind(phase)
            .execute(&self.0)
            .await
            .during("asking for a phase")?;
        Ok(())
    }

    /// A person says that the old column may go.
    pub(crate) async fn approve_contract(&self) -> Result<()> {
        sqlx::query(
            "insert into cutover.approvals (migration_id, phase, actor, reason)
             select id, 'contract', 'demo', 'both columns were compared' from cutover.migrations where name = $1
             on conflict do nothing",
        )
        .bind(MIGRATION)
        .execute(&self.0)
        .await
        .during("approving contract")?;
        Ok(())
    }

    async fn migration(&self) -> Result<i32> {
        let id = sqlx::query_scalar("select id from cutover.migrations where name = $1");
        Ok(id.bind(MIGRATION).fetch_one(&self.0).await?)
    }

    async fn jobs(&self, migration: i32) -> Result<Vec<Job>> {
        let rows = sqlx::query(
            "select kind, rows_done, rows_total, rows_changed, differences, finished_at is not null as finished,
                 extract(epoch from coalesce(finished_at, clock_timestamp()) - started_at)::float8 as seconds
             from cutover.jobs where migration_id = $1 order by id",
        )
        .bind(migration)
        .fetch_all(&self.0)
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
