//! Passes over all rows in batches: the copy in both directions, and the comparison.
//!
//! Each batch is a transaction at the epoch at which the pass began. A batch begins at the checkpoint of its range. The
//! upper bound was fixed at the beginning: rows above it were inserted by transactions that write both sides. A row is
//! never skipped because its new side holds a value, since a side that was written, given up and expanded again holds old
//! values.
//!
//! If a batch fails on a row, it is halved until the row is found. The row is set aside with its key and the error. A pass
//! with such rows does not finish. They are tried first when the pass runs again.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::try_join_all;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgPool, Row};
use tokio::time::{Instant, sleep};

use super::errors::{explain_row_lock, explain_row_security, is_transient, may_concern_a_row};
use super::governor::Governor;
use super::job::{self, Measured};
use super::keyset::{BatchEnd, Span};
use super::kind::PassKind;
use super::options::BatchOptions;
use super::pace::Pace;
use super::row_bytes::RowBytes;
use super::sides::{Scope, Sides};
use super::table_size;
use super::throttle::{Throttle, ThrottleState};
use super::transaction::{BATCH_LIMITS, MAX_FAILURES, PAUSE_POLL, back_off, begin, begin_unpaused};
use super::vacuum::Vacuum;
use crate::ledger::jobs::{Claim, Job, KeyText, Progress, Range};
use crate::ledger::{describe_error, external_writes};
use crate::migration::catalog::{ROW_WORK_SETTINGS, SKIP_TRIGGERS};
use crate::migration::coordinator::PlanError;
use crate::migration::runtime::{Error, Migration, PinnedTx};

/// How long a worker waits if other workers hold all ranges that are left.
const RANGES_TAKEN: Duration = Duration::from_millis(250);
/// The commit of a batch does not wait for the disk, or for standbys. The checkpoint is in the same transaction, so a crash
/// of the server loses both or neither, and the batch is repeated. A later commit that does wait, such as that of the next
/// phase, makes all earlier ones durable.
///
/// A batch is too short for a compilation of its statements to pay. The server might begin one when the statistics of the
/// table are wrong.
const BATCH_SETTINGS: &str = "set local synchronous_commit = off; set local jit = off; ";
/// How many rows are sampled to cut a table into ranges.
const SAMPLE: f64 = 20_000.0;

/// What passes need to know of a migration.
#[derive(Debug, Clone)]
pub(crate) struct Outline {
    pub(crate) pool: PgPool,
    pub(crate) sides: Sides,
    /// The key's columns; empty: the key that the catalog has.
    pub(crate) key: Vec<String>,
    pub(crate) batches: BatchOptions,
    pub(crate) throttle: Throttle,
    /// Whether copies fire no triggers.
    pub(crate) skips_triggers: bool,
    /// Whether values stay out of reports.
    pub(crate) sensitive: bool,
}

/// The result of an attempt to run a batch.
enum Batch {
    /// The batch took this long, without the waits before it began, and the table has about this many rows.
    Done { elapsed: Duration, total: i64 },
    /// Other workers hold the ranges that are left.
    Taken,
    /// No rows are left.
    Finished,
}

pub(crate) async fn run(
    outline: &Outline,
    scope: Scope<'_>,
    kind: PassKind,
    migration: &Migration,
) -> Result<(), PlanError> {
    let tables = [&*outline.sides.old, &*outline.sides.new];
    let tables = if tables[0] == tables[1] { &tables[..1] } else { &tables[..] };
    match run_pass(outline, scope, kind, migration).await {
        Ok(()) => Ok(()),
        Err(error) => {
            let error = explain_row_security(&outline.pool, tables, error).await;
            Err(explain_row_lock(&outline.pool, tables, error).await)
        }
    }
}

async fn run_pass(
    outline: &Outline,
    scope: Scope<'_>,
    kind: PassKind,
    migration: &Migration,
) -> Result<(), PlanError> {
    let since = wait_for_open_external_writes(&outline.pool, kind, migration).await?;
    let mut tx = begin_unpaused(&outline.pool, kind, migration, "").await?;
    let epoch = tx.epoch();
    scope.try_out(&mut tx).await?;
    let measure = async |tx: &mut PgConnection| measure(outline, &scope, tx).await;
    let job = job::open(&mut tx, migration.id(), epoch, kind, Some(&since), measure).await?;
    let mut row_bytes = Vec::new();
    if scope.sides.forward.is_rust() || scope.sides.backward.is_rust() {
        for table in scope.tables() {
            row_bytes.extend(RowBytes::of(&mut tx, table).await?);
        }
    }
    tx.commit().await?;
    let Some(job) = job else { return Ok(()) };
    let governor = outline.throttle.governor(&migration.write_times().counts()).map(Mutex::new);
    let pass = Pass { outline, scope, kind, migration, job, governor, row_bytes };
    pass.retry_bad_rows().await?;
    try_join_all((0..outline.batches.workers).map(|_| pass.work())).await?;
    pass.report().await
}

/// Waits until the external transactions that are open now have ended. Returns the time of the beginning, as the server
/// writes it.
async fn wait_for_open_external_writes(
    pool: &PgPool,
    kind: PassKind,
    migration: &Migration,
) -> Result<String, PlanError> {
    let mut tx = begin_unpaused(pool, kind, migration, "").await?;
    let writers = external_writes::open_now(&mut tx, migration.id()).await?;
    loop {
        let open = external_writes::still_open(&mut tx, migration.id(), &writers).await?;
        tx.rollback().await?;
        if open.is_empty() {
            migration.note("");
            return Ok(writers.since);
        }
        migration.note(&format!("{}; to unblock: end these transactions", open.join("; ")));
        sleep(PAUSE_POLL).await;
        tx = begin_unpaused(pool, kind, migration, "").await?;
    }
}

async fn measure(
    outline: &Outline,
    scope: &Scope<'_>,
    tx: &mut PgConnection,
) -> Result<Measured, sqlx::Error> {
    let old = &scope.sides.old;
    let size = table_size::count(tx, old).await?;
    let Some(last) = scope.key.last(&scope.tables()).fetch_plain(&mut *tx).await?.pop() else {
        return Ok(Measured { range_ends: Vec::new(), size });
    };
    // Ranges shorter than a batch do not make the pass faster.
    let useful = size.rows / i64::from(outline.batches.max_rows);
    let count = u16::try_from(useful).unwrap_or(u16::MAX).clamp(1, outline.batches.ranges);
    let mut range_ends: Vec<KeyText> = Vec::new();
    if count > 1 {
        let percent = (100.0 * SAMPLE / size.rows as f64).clamp(0.01, 100.0);
        for row in scope.key.cuts(old, count, percent).fetch_plain(&mut *tx).await? {
            range_ends.push(row.try_get(0)?);
        }
    }
    range_ends.push(last.try_get(0)?);
    Ok(Measured { range_ends, size })
}

/// A pass that runs on this instance.
pub(super) struct Pass<'a> {
    pub(super) outline: &'a Outline,
    pub(super) scope: Scope<'a>,
    pub(super) kind: PassKind,
    pub(super) migration: &'a Migration,
    pub(super) job: Job,
    /// `None`: the pass does not adapt to the service's writes.
    governor: Option<Mutex<Governor>>,
    /// For mappings in Rust.
    pub(super) row_bytes: Vec<RowBytes>,
}

impl Pass<'_> {
    /// Runs batch after batch until no rows are left.
    async fn work(&self) -> Result<(), PlanError> {
        let mut pace = Pace::new(&self.outline.batches);
        let mut range = None;
        let mut failures = 0;
        let mut bad_row = None;
        // Until a batch fails: then it is repeated in the form that has no conflicts.
        let mut inserts = self.may_insert();
        let (mut vacuum, mut throttle) = (Vacuum::default(), ThrottleState::default());
        loop {
            self.wait_for_throttle(&mut throttle).await?;
            match self.batch(pace.rows(), &mut range, bad_row.take(), inserts).await {
                Ok(Batch::Done { elapsed, total }) => {
                    (failures, inserts) = (0, self.may_insert());
                    self.rest(elapsed).await;
                    self.limit(&mut pace, total);
                    pace.record(elapsed);
                    self.wait_for_vacuum(&mut vacuum).await?;
                }
                Ok(Batch::Taken) => sleep(RANGES_TAKEN).await,
                Ok(Batch::Finished) => return Ok(()),
                Err(PlanError::Operation(error)) if is_transient(&error) && failures < MAX_FAILURES => {
                    failures += 1;
                    pace.shrink();
                    tracing::debug!(%error, failures, kind = self.kind.name(), "batch failed; retrying");
                    back_off().await;
                }
                Err(PlanError::Operation(Error::Database(error))) if may_concern_a_row(&error) => {
                    if inserts {
                        inserts = false;
                    } else if !pace.halve() {
                        bad_row = Some(describe_error(&error));
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Limits the next batch if the service writes meanwhile.
    fn limit(&self, pace: &mut Pace, total: i64) {
        let governor = self.governor.as_ref().map(|governor| lock(governor));
        let Some(governor) = governor.filter(|governor| governor.has_seen_writes(wall_clock())) else {
            return pace.lift_limit();
        };
        // A scan locks no rows, but takes a processor of the server.
        let locked_of = (self.kind != PassKind::Compare).then_some(total);
        pace.limit_beside_writes(locked_of, governor.slow_write());
    }

    /// Pauses after a batch, so that the service's writes stay fast, outside of any transaction. Returns when the
    /// migration leaves the epoch.
    async fn rest(&self, mut batch: Duration) {
        let Some(governor) = &self.governor else { return };
        loop {
            let writes = self.migration.write_times().counts();
            let rest = lock(governor).rest(wall_clock(), batch, writes);
            if rest.is_zero() {
                return;
            }
            let until = Instant::now() + rest;
            while Instant::now() < until {
                sleep(PAUSE_POLL.min(until - Instant::now())).await;
                if self.migration.current().is_none_or(|(epoch, _)| epoch != self.job.epoch) {
                    return;
                }
            }
            self.migration.work().held(self.kind.name(), "foreground", rest);
            batch = Duration::ZERO;
        }
    }

    async fn wait_for_vacuum(&self, vacuum: &mut Vacuum) -> Result<(), PlanError> {
        if self.kind != PassKind::Compare {
            vacuum.wait(&self.outline.pool, self.written()).await?;
        }
        Ok(())
    }

    /// Waits outside of any transaction while the throttle has a reason, and shows the reason in the ledger.
    ///
    /// # Errors
    ///
    /// [`PlanError::PhaseLeft`] as soon as the migration leaves the epoch.
    async fn wait_for_throttle(&self, state: &mut ThrottleState) -> Result<(), PlanError> {
        let Outline { pool, throttle, .. } = self.outline;
        let (kind, mut shown) = (self.kind.name(), None);
        while let Some(reason) = throttle.check_now(state, pool).await? {
            if shown.as_ref() != Some(&reason) {
                tracing::info!(
                    migration = self.migration.name(),
                    kind,
                    reason = reason.text,
                    "pass throttled"
                );
                self.job.set_throttled(pool, &reason.text).await?;
                self.migration.note(&format!(
                    "the throttle of the {kind}: {}; to unblock: wait, or change `Throttle`",
                    reason.text
                ));
            }
            self.migration.work().held(kind, reason.kind, Throttle::pause().await);
            shown = Some(reason);
            if self.migration.current().is_none_or(|(epoch, _)| epoch != self.job.epoch) {
                self.migration.note("");
                return Err(PlanError::PhaseLeft);
            }
        }
        if shown.is_some() {
            self.migration.note("");
        }
        Ok(())
    }

    /// Begins a transaction at the epoch of the job.
    pub(super) async fn begin(&self) -> Result<PinnedTx, PlanError> {
        let tx = begin_unpaused(&self.outline.pool, self.kind, self.migration, &self.limits()).await?;
        if tx.epoch() == self.job.epoch { Ok(tx) } else { Err(PlanError::PhaseLeft) }
    }

    fn limits(&self) -> String {
        let skips = self.outline.skips_triggers && self.kind != PassKind::Compare;
        format!("{BATCH_LIMITS}{}", if skips { SKIP_TRIGGERS } else { "" })
    }

    /// Begins a transaction at the epoch of the job and claims a range in it. `last` is the range that this worker
    /// claimed last. Also returns the end of the range's next batch, if it is that range and where the worker left it.
    async fn begin_batch(
        &self,
        rows: u32,
        last: Option<&Range>,
    ) -> Result<(PinnedTx, Claim, Option<PgRow>), PlanError> {
        let settings = format!("{}{}{BATCH_SETTINGS}", *ROW_WORK_SETTINGS, self.limits());
        let ahead = last.map(|range| self.batch_end(range, rows).text).unwrap_or_default();
        loop {
            let mut tx = begin(&self.outline.pool, self.kind.phases(), self.migration).await?;
            if tx.epoch() != self.job.epoch {
                return Err(PlanError::PhaseLeft);
            }
            let number = last.map(|range| range.number);
            let opened = self.job.open_batch(&mut tx, &settings, number, &ahead).await;
            let Some((claim, ends)) = opened.map_err(|error| self.not_about_a_row(error))? else {
                tx.rollback().await?;
                sleep(PAUSE_POLL).await;
                continue;
            };
            let is_last = match (&claim, last) {
                (Claim::Range(now), Some(last)) => (now.number, &now.from) == (last.number, &last.from),
                _ => false,
            };
            return Ok((tx, claim, ends.into_iter().next().filter(|_| is_last)));
        }
    }

    /// Runs the next batch of a range, or sets its next row aside if that row has failed with `bad_row`.
    async fn batch(
        &self,
        rows: u32,
        last: &mut Option<Range>,
        bad_row: Option<String>,
        inserts: bool,
    ) -> Result<Batch, PlanError> {
        let (mut tx, claim, end) = self.begin_batch(rows, last.as_ref()).await?;
        let began = Instant::now();
        let range = match claim {
            Claim::Range(range) => range,
            Claim::Taken => return Ok(Batch::Taken),
            Claim::Lost => return Err(job::lost(self.kind)),
            Claim::Nothing => {
                let size = table_size::estimate(&mut tx, self.written()).await?;
                job::finish(&mut tx, &self.job, self.kind, size).await?;
                tx.commit().await?;
                return Ok(Batch::Finished);
            }
        };
        let mut end = match end {
            Some(end) => BatchEnd::of(&end, rows)?,
            None => self.end_of(&range, rows, &mut tx).await?,
        };
        if let Some(fewer) = self.fitting(&range, &end, &mut tx).await? {
            end = self.end_of(&range, fewer, &mut tx).await?;
        }
        let BatchEnd { wanted, rows: count, last: last_key } = end;
        let held_back = self.governor.as_ref().and_then(|governor| lock(governor).reason());
        let mut progress = Progress { rows: count, held_back, ..Progress::default() };
        // If there are fewer rows than requested, the range ends here.
        let done = last_key.filter(|_| count == i64::from(wanted)).unwrap_or_else(|| range.to.clone());
        match bad_row {
            Some(error) => self.set_aside(&mut tx, &done, &error).await?,
            None => {
                let span = Span::Between { from: range.from.clone(), to: done.clone() };
                let missing = inserts.then_some(count);
                (progress.changed, progress.differences) = self.do_rows(&mut tx, &span, missing).await?;
            }
        }
        let advance = self.job.advance_statements(&range, &done, &progress);
        let advanced = tx.commit_after(advance).await?;
        let total = advanced.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)?;
        *last = Some(Range { from: Some(done), ..range });
        self.migration.work().did(self.kind.name(), progress.rows);
        self.migration.work().expects(self.kind.name(), total);
        Ok(Batch::Done { elapsed: began.elapsed(), total })
    }

    /// An error before any row is looked at. A smaller batch would fail in the same way.
    pub(super) fn not_about_a_row(&self, error: sqlx::Error) -> PlanError {
        if !may_concern_a_row(&error) {
            return error.into();
        }
        PlanError::Refused(format!(
            "the keys of {} cannot be compared with each other: {}; give the key the same type in both tables",
            self.scope.tables().join(" and "),
            describe_error(&error)
        ))
    }

    /// The table that the pass writes.
    fn written(&self) -> &str {
        if self.kind == PassKind::Back { &self.scope.sides.old } else { &self.scope.sides.new }
    }
}

/// The time since a moment that all instances agree on.
fn wall_clock() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn lock(governor: &Mutex<Governor>) -> MutexGuard<'_, Governor> {
    governor.lock().unwrap_or_else(PoisonError::into_inner)
}
