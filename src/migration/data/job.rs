//! The ledger's row of a piece of long work. Its checkpoint commits with the batch that it describes, so that
//! any instance can go on where another one stopped.

use sqlx::PgConnection;

use super::sweep::Sweep;
use crate::fleet::unnamed;
use crate::migration::control::PlanError;
use crate::migration::phase::Side;

/// A job under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Job {
    pub(super) id: i64,
    migration: i32,
    /// The epoch at which it began. What was done at another one counts for nothing: the side may have gone
    /// unwritten in between.
    pub(super) epoch: i32,
    sweep: Sweep,
}

/// How far a job has come.
#[derive(Debug)]
pub(super) struct Progress {
    /// The first key that has not been done, and the last one to do; `None` when nothing is left.
    pub(super) left: Option<(i64, i64)>,
    pub(super) differences: i64,
}

/// What a batch did.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) checkpoint: i64,
    pub(super) rows: i64,
    pub(super) changed: i64,
    pub(super) differences: i64,
}

/// The work that lies ahead, measured when it begins.
#[derive(Debug)]
pub(super) struct Extent {
    /// The largest key. Every row above it was written at an epoch that writes both sides.
    pub(super) upper: Option<i64>,
    /// About how many rows there are.
    pub(super) rows: i64,
}

impl Job {
    /// Goes on with this epoch's job or begins it. `None` when there is nothing to do any more.
    pub(super) async fn open(
        tx: &mut PgConnection,
        migration: i32,
        epoch: i32,
        sweep: Sweep,
        extent: Extent,
    ) -> Result<Option<Job>, PlanError> {
        // The lock makes one instance wait for another's end of the job, which sets the flag in this row.
        let flags: Option<(bool, bool)> = unnamed::query_as(
            "select old_complete, new_complete from cutover.migrations where id = $1 and epoch = $2 \
             for no key update",
        )
        .bind(migration)
        .bind(epoch)
        .fetch_optional(&mut *tx)
        .await?;
        let (old, new) = flags.ok_or(PlanError::PhaseLeft)?;
        if sweep.completes().is_some_and(|side| if side == Side::Old { old } else { new }) {
            return Ok(None);
        }
        let job = |id| Some(Job { id, migration, epoch, sweep });
        let open: Option<i64> = unnamed::query_scalar(
            "select id from cutover.jobs \
             where migration_id = $1 and kind = $2 and epoch = $3 and finished_at is null",
        )
        .bind(migration)
        .bind(sweep.kind())
        .bind(epoch)
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(id) = open {
            return Ok(job(id));
        }
        // Of an earlier stay in this phase, or a scan that found differences.
        unnamed::query(
            "delete from cutover.jobs \
             where migration_id = $1 and kind = $2 and (finished_at is null or differences > 0)",
        )
        .bind(migration)
        .bind(sweep.kind())
        .execute(&mut *tx)
        .await?;
        let id = unnamed::query_scalar(
            "insert into cutover.jobs (migration_id, kind, epoch, rows_total, upper_bound) \
             values ($1, $2, $3, $4, $5) returning id",
        )
        .bind(migration)
        .bind(sweep.kind())
        .bind(epoch)
        .bind(extent.rows)
        .bind(extent.upper.map(|key| key.to_string()))
        .fetch_one(&mut *tx)
        .await?;
        Ok(job(id))
    }

    /// Locks the job for a batch. `None` when somebody else has ended it.
    pub(super) async fn take(&self, tx: &mut PgConnection) -> Result<Option<Progress>, sqlx::Error> {
        let row: Option<(Option<i64>, Option<i64>, i64)> = unnamed::query_as(
            "select checkpoint::bigint, upper_bound::bigint, differences from cutover.jobs \
             where id = $1 and finished_at is null for update",
        )
        .bind(self.id)
        .fetch_optional(tx)
        .await?;
        Ok(row.map(|(done, upper, differences)| {
            let first = done.map_or(Some(i64::MIN), |done| done.checked_add(1));
            let left = first.zip(upper).filter(|(first, upper)| first <= upper);
            Progress { left, differences }
        }))
    }

    /// Writes down a batch in the transaction that did it.
    pub(super) async fn advance(&self, tx: &mut PgConnection, step: &Step) -> Result<(), sqlx::Error> {
        unnamed::query(
            "update cutover.jobs set checkpoint = $2, rows_done = rows_done + $3, \
                    rows_changed = rows_changed + $4, differences = differences + $5, \
                    rows_total = greatest(rows_total, rows_done + $3), updated_at = clock_timestamp() \
             where id = $1",
        )
        .bind(self.id)
        .bind(step.checkpoint.to_string())
        .bind(step.rows)
        .bind(step.changed)
        .bind(step.differences)
        .execute(tx)
        .await?;
        Ok(())
    }

    /// Ends the job, and with it says that a side is complete. Only the epoch at which it began may say so.
    pub(super) async fn finish(&self, tx: &mut PgConnection) -> Result<(), PlanError> {
        let statement = match self.sweep.completes() {
            Some(Side::New) => {
                "update cutover.migrations set new_complete = true where id = $1 and epoch = $2"
            }
            Some(Side::Old) => {
                "update cutover.migrations set old_complete = true where id = $1 and epoch = $2"
            }
            // Locks the row, so that the migration can't move before this is committed.
            None => "update cutover.migrations set epoch = epoch where id = $1 and epoch = $2",
        };
        let current =
            unnamed::query(statement).bind(self.migration).bind(self.epoch).execute(&mut *tx).await?;
        if current.rows_affected() != 1 {
            return Err(PlanError::PhaseLeft);
        }
        unnamed::query(
            "with job as ( \
                 update cutover.jobs set finished_at = clock_timestamp(), updated_at = clock_timestamp(), \
                        rows_total = rows_done where id = $1 returning *) \
             insert into cutover.history (fleet, migration, event, epoch, actor, reason) \
             select m.fleet, m.name, job.kind || ' ended', job.epoch, 'cutover', \
                    format('%s rows, %s changed, %s differences', \
                           job.rows_done, job.rows_changed, job.differences) \
             from job join cutover.migrations m on m.id = job.migration_id",
        )
        .bind(self.id)
        .execute(tx)
        .await?;
        Ok(())
    }
}
