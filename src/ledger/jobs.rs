//! Backfills and scans: rows of `cutover.jobs` and `cutover.job_ranges`.
//!
//! A range's checkpoint commits in the transaction of the batch that it describes. Any instance can therefore continue
//! where another one stopped.

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow, PgConnection, PgPool, Row};

use super::{literal, unprepared};

/// A row's key, one text per column.
pub(crate) type KeyText = Vec<String>;

/// A job that has not finished.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job {
    pub(crate) id: i64,
    pub(crate) migration: i32,
    /// The epoch at which the job began. Work of another epoch does not count, because the side may have gone unwritten
    /// in between.
    pub(crate) epoch: i32,
    /// `backfill`, `reverse_backfill` or `scan`.
    pub(crate) kind: &'static str,
}

/// A key range, locked until the end of the transaction.
#[derive(Debug, Clone, FromRow)]
pub(crate) struct Range {
    pub(crate) number: i16,
    /// The last key that is done.
    #[sqlx(rename = "checkpoint")]
    pub(crate) from: Option<KeyText>,
    #[sqlx(rename = "upper_bound")]
    pub(crate) to: KeyText,
}

/// The result of a request for a range.
#[derive(Debug)]
pub(crate) enum Claim {
    Range(Range),
    /// Other workers hold every unfinished range.
    Taken,
    /// All ranges are finished.
    Nothing,
    /// Ranges are missing, so it is not known which rows were visited.
    Lost,
}

/// What a batch adds to the counts of its job.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub(crate) rows: i64,
    pub(crate) changed: i64,
    pub(crate) differences: i64,
    /// What holds the job back at the moment.
    pub(crate) held_back: Option<String>,
}

/// The size of the table that a job works on.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct TableSize {
    /// Live rows, counted or estimated.
    pub(crate) rows: i64,
    /// Size on disk, with partitions and TOAST.
    pub(crate) bytes: i64,
    /// Row versions that vacuum has not removed, from the statistics.
    pub(crate) dead_rows: i64,
}

/// Runs `settings` (statements that end in `;`, or nothing) and returns whether a person has paused the migration's
/// backfills and scans. Both go to the server in one message, so a batch pays no extra round trip.
pub(crate) async fn is_paused(
    tx: &mut PgConnection,
    settings: &str,
    migration: i32,
) -> Result<bool, sqlx::Error> {
    let statement =
        format!("{settings}select paused_at is not null from cutover.migrations where id = {migration}");
    unprepared::ask_scalar(tx, statement).await
}

/// Locks the migration's row and returns whether the old and the new side are complete. `None` if the migration has
/// left the epoch.
///
/// The lock makes an instance wait while another one finishes the job, which sets a flag in this row.
pub(crate) async fn lock_completeness(
    tx: &mut PgConnection,
    migration: i32,
    epoch: i32,
) -> Result<Option<(bool, bool)>, sqlx::Error> {
    unprepared::query_as(
        "select old_complete, new_complete from cutover.migrations where id = $1 and epoch = $2 \
         for no key update",
    )
    .bind(migration)
    .bind(epoch)
    .fetch_optional(tx)
    .await
}

/// The unfinished job of this kind and epoch, if all its ranges are there.
pub(crate) async fn find_open(
    tx: &mut PgConnection,
    migration: i32,
    epoch: i32,
    kind: &'static str,
) -> Result<Option<Job>, sqlx::Error> {
    let id: Option<i64> = unprepared::query_scalar(
        "select id from cutover.jobs \
         where migration_id = $1 and kind = $2 and epoch = $3 and finished_at is null \
             and ranges = (select count(*) from cutover.job_ranges where job_id = id)",
    )
    .bind(migration)
    .bind(kind)
    .bind(epoch)
    .fetch_optional(tx)
    .await?;
    Ok(id.map(|id| Job { id, migration, epoch, kind }))
}

/// Deletes the unfinished job of this kind, which belongs to an earlier epoch, or has lost ranges.
pub(crate) async fn delete_unfinished(
    tx: &mut PgConnection,
    migration: i32,
    kind: &str,
) -> Result<(), sqlx::Error> {
    unprepared::query(
        "delete from cutover.jobs where migration_id = $1 and kind = $2 and finished_at is null",
    )
    .bind(migration)
    .bind(kind)
    .execute(tx)
    .await?;
    Ok(())
}

/// Creates a job with ranges that end at these keys. `since` is the time at which it counts as started, as the server
/// writes it; the default is now.
pub(crate) async fn create(
    tx: &mut PgConnection,
    (migration, epoch, kind): (i32, i32, &'static str),
    size: TableSize,
    since: Option<&str>,
    range_ends: &[KeyText],
) -> Result<Job, sqlx::Error> {
    let id = unprepared::query_scalar(
        "insert into cutover.jobs (migration_id, kind, epoch, rows_total, bytes_before, dead_rows_before, started_at, ranges) \
         values ($1, $2, $3, $4, $5, $6, coalesce($7::text::timestamptz, clock_timestamp()), $8) returning id",
    )
    .bind(migration)
    .bind(kind)
    .bind(epoch)
    .bind(size.rows)
    .bind(size.bytes)
    .bind(size.dead_rows)
    .bind(since)
    .bind(i32::try_from(range_ends.len()).unwrap_or(i32::MAX))
    .fetch_one(&mut *tx)
    .await?;
    let mut from: Option<&KeyText> = None;
    for (number, to) in (0_i16..).zip(range_ends) {
        unprepared::query(
            "insert into cutover.job_ranges (job_id, number, checkpoint, upper_bound) values ($1, $2, $3, $4)",
        )
        .bind(id)
        .bind(number)
        .bind(from)
        .bind(to)
        .execute(&mut *tx)
        .await?;
        from = Some(to);
    }
    Ok(Job { id, migration, epoch, kind })
}

impl Job {
    /// Locks an unfinished range for a batch, preferably range `last`.
    ///
    /// The lock is the claim. It ends with the transaction, so no lease has to expire after a worker has died.
    pub(crate) async fn claim(&self, tx: &mut PgConnection, last: Option<i16>) -> Result<Claim, sqlx::Error> {
        let range = unprepared::ask(&mut *tx, self.claim_query(last)).await?.pop();
        self.claimed(tx, range).await
    }

    /// Runs `settings` as [`is_paused`] does, and claims a range as [`Job::claim`] does. `None` if the migration is
    /// paused. `ahead` is a query, or nothing. All of this is one message, so it also returns the rows of `ahead`.
    pub(crate) async fn open_batch(
        &self,
        tx: &mut PgConnection,
        settings: &str,
        last: Option<i16>,
        ahead: &str,
    ) -> Result<Option<(Claim, Vec<PgRow>)>, sqlx::Error> {
        let message = format!(
            "{settings}select paused_at is not null from cutover.migrations where id = {}; {}; {ahead}",
            self.migration,
            self.claim_query(last)
        );
        // Rows of several statements, each with columns of its own.
        let mut rows =
            sqlx::raw_sql(AssertSqlSafe(message)).fetch_all(&mut *tx).await?.into_iter().peekable();
        if rows.next().ok_or(sqlx::Error::RowNotFound)?.try_get(0)? {
            return Ok(None);
        }
        let range = rows.next_if(|row| row.try_column("upper_bound").is_ok());
        let range = range.map(|row| Range::from_row(&row)).transpose()?;
        Ok(Some((self.claimed(tx, range).await?, rows.collect())))
    }

    fn claim_query(&self, last: Option<i16>) -> String {
        let last = last.map_or("null".to_owned(), |last| last.to_string());
        format!(
            "select number, checkpoint, upper_bound from cutover.job_ranges where job_id = {} and finished_at is null \
             order by number is not distinct from {last} desc, number limit 1 for update skip locked",
            self.id
        )
    }

    /// What the answer to [`Job::claim_query`] means.
    async fn claimed(&self, tx: &mut PgConnection, range: Option<Range>) -> Result<Claim, sqlx::Error> {
        if let Some(range) = range {
            return Ok(Claim::Range(range));
        }
        let (is_unfinished, is_whole): (bool, bool) = unprepared::query_as(
            "select count(*) filter (where finished_at is null) > 0, \
                    count(*) is not distinct from (select ranges::bigint from cutover.jobs where id = $1) \
             from cutover.job_ranges where job_id = $1",
        )
        .bind(self.id)
        .fetch_one(tx)
        .await?;
        Ok(match (is_unfinished, is_whole) {
            (true, _) => Claim::Taken,
            (false, true) => Claim::Nothing,
            (false, false) => Claim::Lost,
        })
    }

    /// Moves the checkpoint of a range to key `done` and adds the batch to the counts. Returns the number of rows in
    /// all.
    pub(crate) async fn advance(
        &self,
        tx: &mut PgConnection,
        range: &Range,
        done: &[String],
        progress: &Progress,
    ) -> Result<i64, sqlx::Error> {
        let statements = self.advance_statements(range, done, progress);
        unprepared::ask_scalar(tx, statements).await
    }

    /// The statements of [`Job::advance`]. They return one row, the number of rows in all.
    pub(crate) fn advance_statements(&self, range: &Range, done: &[String], progress: &Progress) -> String {
        let (job, number, done) = (self.id, range.number, literal::texts(done));
        format!(
            "update cutover.job_ranges set checkpoint = {done}, \
                    finished_at = case when {done} = upper_bound then clock_timestamp() end \
             where job_id = {job} and number = {number}; {}",
            // Last, because all workers write this row.
            self.add_statement(progress)
        )
    }

    /// Adds to the counts.
    pub(crate) async fn add(&self, tx: &mut PgConnection, progress: &Progress) -> Result<(), sqlx::Error> {
        unprepared::ask_one(tx, self.add_statement(progress)).await
    }

    fn add_statement(&self, progress: &Progress) -> String {
        let (job, Progress { rows, changed, differences, held_back }) = (self.id, progress);
        let held_back = held_back.as_deref().map_or("null".to_owned(), literal::text);
        format!(
            "update cutover.jobs set rows_done = rows_done + {rows}, rows_changed = rows_changed + {changed}, \
                    differences = differences + {differences}, rows_total = greatest(rows_total, rows_done + {rows}), \
                    throttled_by = {held_back}, updated_at = clock_timestamp() \
             where id = {job} returning rows_total"
        )
    }

    /// Records why the job is throttled. The next batch clears it.
    pub(crate) async fn set_throttled(&self, pool: &PgPool, reason: &str) -> Result<(), sqlx::Error> {
        let (id, reason) = (self.id, literal::text(reason));
        let update = format!(
            "update cutover.jobs set throttled_by = {reason}, updated_at = clock_timestamp() where id = {id}"
        );
        unprepared::ask::<()>(pool, update).await?;
        Ok(())
    }

    /// Finishes the job and marks a side (`old` or `new`) as complete, if there is one to mark. Returns `false` if the
    /// migration has left the job's epoch, which alone may mark it.
    pub(crate) async fn finish(
        &self,
        tx: &mut PgConnection,
        completes: Option<&str>,
        size: TableSize,
    ) -> Result<bool, sqlx::Error> {
        // The update also locks the row, so that the migration cannot move before the commit.
        let current = unprepared::query(
            "update cutover.migrations set old_complete = old_complete or $3 is not distinct from 'old', \
                    new_complete = new_complete or $3 is not distinct from 'new' \
             where id = $1 and epoch = $2",
        )
        .bind(self.migration)
        .bind(self.epoch)
        .bind(completes)
        .execute(&mut *tx)
        .await?;
        if current.rows_affected() != 1 {
            return Ok(false);
        }
        // Every worker gets here. The first one finishes the job.
        unprepared::query(
            "with job as ( \
                 update cutover.jobs set finished_at = clock_timestamp(), updated_at = clock_timestamp(), \
                        finished_lsn = cutover.wal_position(), throttled_by = null, \
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
        // The differences of earlier scans go with their jobs.
        unprepared::query(
            "delete from cutover.jobs where migration_id = $1 and kind = $2 and id < $3 and differences > 0",
        )
        .bind(self.migration)
        .bind(self.kind)
        .bind(self.id)
        .execute(tx)
        .await?;
        Ok(true)
    }
}
