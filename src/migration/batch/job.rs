//! The ledger's rows of a piece of long work. A range's checkpoint commits with the batch that it describes, so that
//! any instance can go on where another one stopped.

use sqlx::{PgConnection, PgPool, Row};

use super::keyset::{KeyText, shown};
use super::kind::PassKind;
use super::table_size::TableSize;
use crate::ledger::unprepared;
use crate::migration::coordinator::PlanError;
use crate::migration::phase::Side;

/// How many keys are named to people at once.
const NAMED: i64 = 5;
/// How many differences a scan keeps for people to look at.
const REPORTED: i64 = 1_000;
/// What stands in a report for a value that should not be seen. Not a hash: a status or a date is soon guessed.
const HIDDEN: &str = "\"…\"";

/// A job under way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job {
    id: i64,
    migration: i32,
    /// The epoch at which it began. What was done at another one counts for nothing: the side may have gone
    /// unwritten in between.
    pub(crate) epoch: i32,
    sweep: PassKind,
}

/// A part of the rows, locked until the transaction ends.
#[derive(Debug)]
pub(crate) struct Range {
    pub(crate) number: i16,
    /// The last key that was done.
    pub(crate) from: Option<KeyText>,
    pub(crate) to: KeyText,
}

/// What there is to do for whoever asks.
#[derive(Debug)]
pub(crate) enum Claim {
    Range(Range),
    /// Others are at all that is left.
    Taken,
    Nothing,
}

/// What a batch did.
#[derive(Debug, Default)]
pub(crate) struct Step {
    pub(crate) rows: i64,
    pub(crate) changed: i64,
    pub(crate) differences: i64,
}

/// The work that lies ahead, measured when it begins.
#[derive(Debug)]
pub(crate) struct Extent {
    /// The last key of each range. Every row above the last one was written at an epoch that writes both sides.
    pub(crate) ranges: Vec<KeyText>,
    pub(crate) size: TableSize,
}

impl Job {
    /// Goes on with this epoch's job or begins it, as from `since`, or now. `None` when there is nothing to do any more.
    pub(crate) async fn open(
        tx: &mut PgConnection,
        migration: i32,
        epoch: i32,
        sweep: PassKind,
        since: Option<&str>,
        measure: impl AsyncFnOnce(&mut PgConnection) -> Result<Extent, sqlx::Error>,
    ) -> Result<Option<Job>, PlanError> {
        // The lock makes one instance wait for another's end of the job, which sets the flag in this row.
        let flags: Option<(bool, bool)> = unprepared::query_as(
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
        let open: Option<i64> = unprepared::query_scalar(
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
        // Of an earlier stay in this phase.
        for statement in [
            "delete from cutover.jobs where migration_id = $1 and kind = $2 and finished_at is null",
            "delete from cutover.bad_rows where migration_id = $1 and kind = $2",
        ] {
            unprepared::query(statement).bind(migration).bind(sweep.kind()).execute(&mut *tx).await?;
        }
        let Extent { ranges, size } = measure(tx).await?;
        let id = unprepared::query_scalar(
            "insert into cutover.jobs (migration_id, kind, epoch, rows_total, bytes_before, dead_rows_before, started_at) \
             values ($1, $2, $3, $4, $5, $6, coalesce($7::text::timestamptz, clock_timestamp())) returning id",
        )
        .bind(migration)
        .bind(sweep.kind())
        .bind(epoch)
        .bind(size.rows)
        .bind(size.bytes)
        .bind(size.dead_rows)
        .bind(since)
        .fetch_one(&mut *tx)
        .await?;
        let mut from: Option<KeyText> = None;
        for (number, to) in (0_i16..).zip(ranges) {
            unprepared::query(
                "insert into cutover.job_ranges (job_id, number, checkpoint, upper_bound) values ($1, $2, $3, $4)",
            )
            .bind(id)
            .bind(number)
            .bind(from)
            .bind(&to)
            .execute(&mut *tx)
            .await?;
            from = Some(to);
        }
        Ok(job(id))
    }

    /// Locks a range for a batch: the one that was had last, if it is still to be had.
    ///
    /// The lock is the claim. There is no owner to be taken for dead and no lease to run out: it goes with the
    /// transaction, and the checkpoint with it.
    pub(crate) async fn claim(&self, tx: &mut PgConnection, last: Option<i16>) -> Result<Claim, sqlx::Error> {
        let row = unprepared::query(
            "select number, checkpoint, upper_bound from cutover.job_ranges \
             where job_id = $1 and finished_at is null order by number is not distinct from $2 desc, number \
             limit 1 for update skip locked",
        )
        .bind(self.id)
        .bind(last)
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(row) = row {
            return Ok(Claim::Range(Range {
                number: row.try_get("number")?,
                from: row.try_get("checkpoint")?,
                to: row.try_get("upper_bound")?,
            }));
        }
        let left: bool = unprepared::query_scalar(
            "select exists (select 1 from cutover.job_ranges where job_id = $1 and finished_at is null)",
        )
        .bind(self.id)
        .fetch_one(tx)
        .await?;
        Ok(if left { Claim::Taken } else { Claim::Nothing })
    }

    /// Writes down a batch in the transaction that did it. Returns how many rows there are in all.
    pub(crate) async fn advance(
        &self,
        tx: &mut PgConnection,
        range: &Range,
        done: &[String],
        step: &Step,
    ) -> Result<i64, sqlx::Error> {
        unprepared::query(
            "update cutover.job_ranges set checkpoint = $3, \
                    finished_at = case when $3 = upper_bound then clock_timestamp() end \
             where job_id = $1 and number = $2",
        )
        .bind(self.id)
        .bind(range.number)
        .bind(done)
        .execute(&mut *tx)
        .await?;
        // Last, because it is the one row that all workers write.
        self.count(tx, step).await
    }

    pub(crate) async fn count(&self, tx: &mut PgConnection, step: &Step) -> Result<i64, sqlx::Error> {
        unprepared::query_scalar(
            "update cutover.jobs set rows_done = rows_done + $2, rows_changed = rows_changed + $3, \
                    differences = differences + $4, rows_total = greatest(rows_total, rows_done + $2), \
                    throttled_by = null, updated_at = clock_timestamp() \
             where id = $1 returning rows_total",
        )
        .bind(self.id)
        .bind(step.rows)
        .bind(step.changed)
        .bind(step.differences)
        .fetch_one(tx)
        .await
    }

    /// Lets people see why nothing is done just now, until the next batch.
    pub(crate) async fn held(&self, pool: &PgPool, why: &str) -> Result<(), sqlx::Error> {
        unprepared::query(
            "update cutover.jobs set throttled_by = $2, updated_at = clock_timestamp() where id = $1",
        )
        .bind(self.id)
        .bind(why)
        .execute(pool)
        .await?;
        Ok(())
    }

    /// Ends the job, and with it says that a side is complete. Only the epoch at which it began may say so, and
    /// only when no row was left out.
    pub(crate) async fn finish(&self, tx: &mut PgConnection, size: TableSize) -> Result<(), PlanError> {
        if let Some(left_out) = self.left_out(tx).await? {
            return Err(PlanError::Refused(left_out));
        }
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
            unprepared::query(statement).bind(self.migration).bind(self.epoch).execute(&mut *tx).await?;
        if current.rows_affected() != 1 {
            return Err(PlanError::PhaseLeft);
        }
        // Several workers come here; the first one ends it.
        unprepared::query(
            "with job as ( \
                 update cutover.jobs set finished_at = clock_timestamp(), updated_at = clock_timestamp(), \
                        finished_lsn = pg_current_wal_insert_lsn(), throttled_by = null, \
                        rows_total = rows_done, bytes_after = $2, dead_rows_after = $3 \
                 where id = $1 and finished_at is null returning *) \
             insert into cutover.history (fleet, migration, event, epoch, actor, reason) \
             select m.fleet, m.name, job.kind || ' ended', job.epoch, 'cutover', \
                    format('%s rows, %s changed, %s differences', \
                           job.rows_done, job.rows_changed, job.differences) \
                    || case when job.kind = 'scan' then '' else format('; table %s before and %s after, dead rows %s and %s', \
                           pg_size_pretty(job.bytes_before), pg_size_pretty(job.bytes_after), \
                           job.dead_rows_before, job.dead_rows_after) end \
             from job join cutover.migrations m on m.id = job.migration_id",
        )
        .bind(self.id)
        .bind(size.bytes)
        .bind(size.dead_rows)
        .execute(&mut *tx)
        .await?;
        // What an earlier scan found is of no interest any more.
        unprepared::query(
            "delete from cutover.jobs where migration_id = $1 and kind = $2 and id < $3 and differences > 0",
        )
        .bind(self.migration)
        .bind(self.sweep.kind())
        .bind(self.id)
        .execute(tx)
        .await?;
        Ok(())
    }

    /// Sets a row aside, or says again what is wrong with it. Returns how many there are.
    pub(crate) async fn set_aside(
        &self,
        tx: &mut PgConnection,
        key: &[String],
        error: &str,
    ) -> Result<i64, sqlx::Error> {
        unprepared::query(
            "insert into cutover.bad_rows (migration_id, kind, key, error) values ($1, $2, $3, $4) \
             on conflict (migration_id, kind, key) do update set error = excluded.error",
        )
        .bind(self.migration)
        .bind(self.sweep.kind())
        .bind(key)
        .bind(error)
        .execute(&mut *tx)
        .await?;
        unprepared::query_scalar(
            "select count(*) from cutover.bad_rows where migration_id = $1 and kind = $2",
        )
        .bind(self.migration)
        .bind(self.sweep.kind())
        .fetch_one(tx)
        .await
    }

    /// The rows that were set aside.
    pub(crate) async fn bad_rows(&self, tx: &mut PgConnection) -> Result<Vec<KeyText>, sqlx::Error> {
        unprepared::query_scalar(
            "select key from cutover.bad_rows where migration_id = $1 and kind = $2 order by seen_at",
        )
        .bind(self.migration)
        .bind(self.sweep.kind())
        .fetch_all(tx)
        .await
    }

    /// The row is as it should be now.
    pub(crate) async fn is_good(&self, tx: &mut PgConnection, key: &[String]) -> Result<(), sqlx::Error> {
        unprepared::query("delete from cutover.bad_rows where migration_id = $1 and kind = $2 and key = $3")
            .bind(self.migration)
            .bind(self.sweep.kind())
            .bind(key)
            .execute(tx)
            .await?;
        Ok(())
    }

    /// Which rows were left out, in words.
    async fn left_out(&self, tx: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
        let rows: Vec<(KeyText, String, i64)> = unprepared::query_as(
            "select key, error, count(*) over () from cutover.bad_rows where migration_id = $1 and kind = $2 \
             order by seen_at limit $3",
        )
        .bind(self.migration)
        .bind(self.sweep.kind())
        .bind(NAMED)
        .fetch_all(tx)
        .await?;
        let named = rows.iter().map(|(key, error, _)| format!("{}: {error}", shown(key))).collect::<Vec<_>>();
        Ok(rows.first().map(|(.., count)| {
            format!(
                "{count} rows could not be mapped and are tried again when they have changed: {}",
                named.join("; ")
            )
        }))
    }

    /// Keeps a difference for people to look at, with what was expected and what was found as JSON.
    pub(crate) async fn differs(
        &self,
        tx: &mut PgConnection,
        key: &[String],
        what: &str,
        values: [Option<String>; 2],
        sensitive: bool,
    ) -> Result<(), sqlx::Error> {
        let [expected, found] =
            values.map(|value| if sensitive { value.map(|_| HIDDEN.to_owned()) } else { value });
        unprepared::query(
            "insert into cutover.differences (job_id, key, what, expected, found) \
             select $1, $2, $3, $4::text::jsonb, $5::text::jsonb \
             where (select count(*) from cutover.differences where job_id = $1) < $6 on conflict do nothing",
        )
        .bind(self.id)
        .bind(key)
        .bind(what)
        .bind(expected)
        .bind(found)
        .bind(REPORTED)
        .execute(tx)
        .await?;
        Ok(())
    }

    /// How many rows a scan objected to, and the first of them by what is wrong.
    pub(crate) async fn findings(
        &self,
        tx: &mut PgConnection,
    ) -> Result<(i64, Vec<(String, Vec<KeyText>)>), sqlx::Error> {
        let differences: Option<i64> =
            unprepared::query_scalar("select differences from cutover.jobs where id = $1")
                .bind(self.id)
                .fetch_optional(&mut *tx)
                .await?;
        let mut found = Vec::new();
        for what in ["different", "missing", "extra", "way_back"] {
            // In the order in which they were found.
            let keys: Vec<KeyText> = unprepared::query_scalar(
                "select key from cutover.differences where job_id = $1 and what = $2 order by ctid limit $3",
            )
            .bind(self.id)
            .bind(what)
            .bind(NAMED)
            .fetch_all(&mut *tx)
            .await?;
            if !keys.is_empty() {
                found.push((what.to_owned(), keys));
            }
        }
        Ok((differences.unwrap_or(0), found))
    }
}
