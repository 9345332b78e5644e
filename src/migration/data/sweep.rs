//! Passes over all rows in batches: the copy in both directions, and the comparison.
//!
//! Each batch is a transaction at the epoch at which the pass began. The lower bound of a batch is the
//! checkpoint, the upper one was fixed at the beginning: rows above it were inserted by transactions that write
//! both sides. No row is passed over for looking filled, because a side that was written, abandoned and taken up
//! again holds stale values.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Executor, PgConnection, Row};
use tokio::time::{Instant, sleep};

use super::ColumnMigration;
use super::ddl::{self, is_lock_timeout};
use super::job::{Extent, Job, Step};
use super::pace::Pace;
use crate::fleet::unnamed;
use crate::migration::control::{Error, Migration, PinnedTx, PlanError};
use crate::migration::phase::{Phase, Side};

/// How long a batch waits for a row before it lets go of those it has: well below the second after which the
/// server looks for deadlocks, so that in one with a batch it is the batch that gives way.
const LOCK_TIMEOUT: &str = "set local lock_timeout = '100ms'";
/// Batches that may fail in a row, for reasons that pass, before the work is given back to the driver.
const FAILURES: u32 = 50;
/// A table up to this size is counted; of a larger one the server's estimate is taken.
const COUNTED_BYTES: i64 = 128 << 20;
/// How many differing keys are named.
const NAMED: usize = 5;

/// What a pass does with the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sweep {
    /// Makes the new side what the old one says.
    Forward,
    /// Makes the old side what the new one says.
    Back,
    /// Compares them, and tries the way back.
    Compare,
}

impl Sweep {
    pub(super) fn kind(self) -> &'static str {
        match self {
            Sweep::Forward => "backfill",
            Sweep::Back => "reverse_backfill",
            Sweep::Compare => "scan",
        }
    }

    /// The phases that it belongs to.
    fn phases(self) -> &'static [Phase] {
        match self {
            Sweep::Forward => &[Phase::Backfill],
            Sweep::Back => &[Phase::Switch],
            Sweep::Compare => &[Phase::Verify, Phase::Ramp],
        }
    }

    /// The side that is complete when it has come to its end.
    pub(super) fn completes(self) -> Option<Side> {
        match self {
            Sweep::Forward => Some(Side::New),
            Sweep::Back => Some(Side::Old),
            Sweep::Compare => None,
        }
    }
}

/// Keys of rows that a comparison objects to, the first few of them.
#[derive(Debug, Default)]
struct Findings {
    differing: Vec<i64>,
    not_coming_back: Vec<i64>,
}

/// What a batch came to.
enum Batch {
    Done,
    /// There are no more rows. So many of them differ.
    Ended(i64),
}

pub(super) async fn run(
    plan: &ColumnMigration,
    sweep: Sweep,
    migration: &Migration,
) -> Result<(), PlanError> {
    let old_type = ddl::check(plan, sweep, migration).await?;
    let Some(job) = open(plan, sweep, migration).await? else { return Ok(()) };
    let mut pass = Pass { plan, sweep, migration, job, old_type, findings: Findings::default() };
    let mut pace = Pace::new(&plan.batches);
    let mut failures = 0;
    loop {
        let began = Instant::now();
        match pass.batch(pace.rows()).await {
            Ok(Batch::Done) => {
                pace.took(began.elapsed());
                failures = 0;
            }
            Ok(Batch::Ended(0)) => return Ok(()),
            Ok(Batch::Ended(differences)) => return Err(PlanError::Refused(pass.report(differences))),
            Err(PlanError::Operation(error)) if passes(&error) && failures < FAILURES => {
                failures += 1;
                pace.shrink();
                tracing::debug!(%error, failures, kind = sweep.kind(), "batch failed; trying it again");
                sleep(Duration::from_millis(10 + fastrand::u64(0..40))).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Whether the same batch may succeed a little later.
fn passes(error: &Error) -> bool {
    error.is_retryable() || matches!(error, Error::Database(error) if is_lock_timeout(error))
}

/// Begins a transaction of one of the phases that the work belongs to.
pub(super) async fn begin(
    plan: &ColumnMigration,
    phases: &[Phase],
    migration: &Migration,
) -> Result<PinnedTx, PlanError> {
    let tx = migration.begin(&plan.pool).await?;
    if phases.contains(&tx.phase()) { Ok(tx) } else { Err(PlanError::PhaseLeft) }
}

async fn open(plan: &ColumnMigration, sweep: Sweep, migration: &Migration) -> Result<Option<Job>, PlanError> {
    let mut tx = begin(plan, sweep.phases(), migration).await?;
    let epoch = tx.epoch();
    let extent = measure(plan, &mut tx).await?;
    let job = Job::open(&mut tx, migration.id(), epoch, sweep, extent).await?;
    tx.commit().await?;
    Ok(job)
}

async fn measure(plan: &ColumnMigration, tx: &mut PgConnection) -> Result<Extent, sqlx::Error> {
    let (key, table) = (&plan.sql.key, &plan.sql.table);
    let (lowest, upper): (Option<i64>, Option<i64>) = unnamed::query_as(AssertSqlSafe(format!(
        "select min({key})::bigint, max({key})::bigint from {table}"
    )))
    .fetch_one(&mut *tx)
    .await?;
    let (bytes, estimate): (i64, i64) = unnamed::query_as(
        "select pg_table_size(oid), reltuples::bigint from pg_class where oid = to_regclass($1)",
    )
    .bind(table)
    .fetch_one(&mut *tx)
    .await?;
    let rows = if bytes <= COUNTED_BYTES {
        unnamed::query_scalar(AssertSqlSafe(format!("select count(*) from {table}"))).fetch_one(tx).await?
    } else if estimate > 0 {
        estimate
    } else {
        // Never analyzed: at most as many rows as there are keys.
        upper.zip(lowest).map_or(0, |(upper, lowest)| upper.saturating_sub(lowest).saturating_add(1))
    };
    Ok(Extent { upper, rows })
}

struct Pass<'a> {
    plan: &'a ColumnMigration,
    sweep: Sweep,
    migration: &'a Migration,
    job: Job,
    old_type: String,
    findings: Findings,
}

impl Pass<'_> {
    async fn batch(&mut self, rows: u32) -> Result<Batch, PlanError> {
        let mut tx = begin(self.plan, self.sweep.phases(), self.migration).await?;
        if tx.epoch() != self.job.epoch {
            return Err(PlanError::PhaseLeft);
        }
        tx.execute(LOCK_TIMEOUT).await?;
        let Some(progress) = self.job.take(&mut tx).await? else { return Ok(Batch::Ended(0)) };
        let step = match progress.left {
            Some((from, upper)) => self.step(&mut tx, from, upper, rows).await?,
            None => None,
        };
        let Some(step) = step else {
            self.job.finish(&mut tx).await?;
            tx.commit().await?;
            return Ok(Batch::Ended(progress.differences));
        };
        self.job.advance(&mut tx, &step).await?;
        tx.commit().await?;
        Ok(Batch::Done)
    }

    /// Does the next rows; `None` when there are none.
    async fn step(
        &mut self,
        tx: &mut PgConnection,
        from: i64,
        upper: i64,
        rows: u32,
    ) -> Result<Option<Step>, sqlx::Error> {
        let sql = &self.plan.sql;
        // Numbers go into the text: the planner then knows how small the range is.
        let from = from.to_string();
        let end = sql.batch_end(&from, &upper.to_string(), &rows.to_string());
        let (last, rows): (Option<i64>, i64) =
            unnamed::query_as(AssertSqlSafe(end)).fetch_one(&mut *tx).await?;
        let Some(checkpoint) = last else { return Ok(None) };
        let to = checkpoint.to_string();
        let (changed, differences) = match self.sweep {
            Sweep::Forward => (execute(tx, sql.copy_forward(&from, &to)).await?, 0),
            Sweep::Back => (execute(tx, sql.copy_back(&from, &to)).await?, 0),
            Sweep::Compare => (0, self.compare(tx, &from, &to).await?),
        };
        Ok(Some(Step { checkpoint, rows, changed, differences }))
    }

    async fn compare(&mut self, tx: &mut PgConnection, from: &str, to: &str) -> Result<i64, sqlx::Error> {
        let found = unnamed::query(AssertSqlSafe(self.plan.sql.differences(&self.old_type, from, to)))
            .fetch_all(tx)
            .await?;
        for row in &found {
            let (key, differs): (i64, bool) = (row.try_get("k")?, row.try_get("differs")?);
            let findings = &mut self.findings;
            let keys = if differs { &mut findings.differing } else { &mut findings.not_coming_back };
            if keys.len() < NAMED && !keys.contains(&key) {
                tracing::warn!(migration = self.migration.name(), key, differs, "the sides differ");
                keys.push(key);
            }
        }
        Ok(i64::try_from(found.len()).unwrap_or(i64::MAX))
    }

    fn report(&self, differences: i64) -> String {
        let Findings { differing, not_coming_back } = &self.findings;
        let mut text = format!("{differences} rows of {} can't be relied on", self.plan.sql.table);
        if !differing.is_empty() {
            text += &format!(
                "; the new column is not what `forward` makes of the old one, {} in {differing:?}",
                self.plan.names.key
            );
        }
        if !not_coming_back.is_empty() {
            text += &format!(
                "; `forward` of `backward` does not give the new column's value back, {} in {not_coming_back:?}",
                self.plan.names.key
            );
        }
        text
    }
}

async fn execute(tx: &mut PgConnection, statement: String) -> Result<i64, sqlx::Error> {
    let done = unnamed::query(AssertSqlSafe(statement)).execute(tx).await?;
    Ok(i64::try_from(done.rows_affected()).unwrap_or(i64::MAX))
}
