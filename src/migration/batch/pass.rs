//! Passes over all rows in batches: the copy in both directions, and the comparison.
//!
//! Each batch is a transaction at the epoch at which the pass began. The lower bound of a batch is its range's
//! checkpoint, the upper one was fixed at the beginning: rows above it were inserted by transactions that write
//! both sides. No row is passed over for looking filled, because a side that was written, abandoned and taken up
//! again holds stale values.
//!
//! A row that can't be mapped is found by halving the batch that failed, and set aside with its key and the error. A
//! pass with such rows does not end; each time it is taken up again they are tried first.

use std::time::Duration;

use futures_util::future::try_join_all;
use sqlx::{PgConnection, PgPool, Row};
use tokio::time::{Instant, sleep};

use super::job::{Claim, Extent, Job, Range, Step};
use super::keyset::{KeyText, Span, shown};
use super::mapping::{Failed, Mapping, MappingCode};
use super::options::BatchOptions;
use super::pace::Pace;
use super::queries::{Mapped, Scope, Sides};
use super::table_size::TableSize;
use super::throttle::{Looks, Throttle};
use super::vacuum::Vacuum;
use crate::ledger::{self, external_writes, sql_state};
use crate::migration::batch::kind::PassKind;
use crate::migration::batch::transaction::{FAILURES, LIMITS, PAUSED, begin_unpaused, give_way, passes};
use crate::migration::coordinator::PlanError;
use crate::migration::runtime::{Error, Migration, PinnedTx};

/// How long to wait for a range that others are at.
const TAKEN: Duration = Duration::from_millis(250);
/// How many rows are looked at to cut a table into ranges.
const SAMPLE: f64 = 20_000.0;

/// What the sweeps need to know of a migration.
#[derive(Debug, Clone)]
pub(crate) struct Outline {
    pub(crate) pool: PgPool,
    pub(crate) sides: Sides,
    /// The key's columns; none: whatever the catalog has.
    pub(crate) key: Vec<String>,
    pub(crate) batches: BatchOptions,
    pub(crate) throttle: Throttle,
    /// Whether values stay out of reports.
    pub(crate) sensitive: bool,
}

/// What a batch came to.
enum Batch {
    /// It took so long, without what it was held up before it began, and the table has about so many rows.
    Done { elapsed: Duration, total: i64 },
    /// Others are at what is left.
    Taken,
    /// There are no more rows.
    Ended,
}

pub(crate) async fn run(
    outline: &Outline,
    scope: Scope<'_>,
    sweep: PassKind,
    migration: &Migration,
) -> Result<(), PlanError> {
    let since = strangers_aside(&outline.pool, sweep, migration).await?;
    let mut tx = begin_unpaused(&outline.pool, sweep, migration, "").await?;
    let epoch = tx.epoch();
    scope.try_out(&mut tx).await?;
    let measure = async |tx: &mut PgConnection| measure(outline, &scope, tx).await;
    let job = Job::open(&mut tx, migration.id(), epoch, sweep, Some(&since), measure).await?;
    tx.commit().await?;
    let Some(job) = job else { return Ok(()) };
    let pass = Pass { outline, scope, sweep, migration, job };
    pass.retry_bad_rows().await?;
    try_join_all((0..outline.batches.workers).map(|_| pass.work())).await?;
    pass.report().await
}

/// Waits until the strangers have ended that are in the middle of a transaction now, and says when that was.
async fn strangers_aside(pool: &PgPool, sweep: PassKind, migration: &Migration) -> Result<String, PlanError> {
    let mut tx = begin_unpaused(pool, sweep, migration, "").await?;
    let strangers = external_writes::open_now(&mut tx, migration.id()).await?;
    loop {
        let open = external_writes::still_open(&mut tx, migration.id(), &strangers).await?;
        tx.rollback().await?;
        if open.is_empty() {
            migration.note("");
            return Ok(strangers.since);
        }
        migration.note(&format!("waits for {}", open.join("; ")));
        sleep(PAUSED).await;
        tx = begin_unpaused(pool, sweep, migration, "").await?;
    }
}

async fn measure(outline: &Outline, scope: &Scope<'_>, tx: &mut PgConnection) -> Result<Extent, sqlx::Error> {
    let old = &scope.sides.old;
    let size = TableSize::count(tx, old).await?;
    let Some(last) = scope.key.last(&scope.tables()).fetch_all(&mut *tx).await?.pop() else {
        return Ok(Extent { ranges: Vec::new(), size });
    };
    // A range shorter than a batch is no help.
    let useful = size.rows / i64::from(outline.batches.max_rows);
    let count = u16::try_from(useful).unwrap_or(u16::MAX).clamp(1, outline.batches.ranges);
    let mut ranges: Vec<KeyText> = Vec::new();
    if count > 1 {
        let percent = (100.0 * SAMPLE / size.rows as f64).clamp(0.01, 100.0);
        for row in scope.key.cuts(old, count, percent).fetch_all(&mut *tx).await? {
            ranges.push(row.try_get(0)?);
        }
    }
    ranges.push(last.try_get(0)?);
    Ok(Extent { ranges, size })
}

struct Pass<'a> {
    outline: &'a Outline,
    scope: Scope<'a>,
    sweep: PassKind,
    migration: &'a Migration,
    job: Job,
}

impl Pass<'_> {
    /// Does batch after batch until nothing is left.
    async fn work(&self) -> Result<(), PlanError> {
        let mut pace = Pace::new(&self.outline.batches);
        let mut range = None;
        let mut failures = 0;
        let mut aside = None;
        let (mut vacuum, mut looks) = (Vacuum::default(), Looks::default());
        loop {
            self.hold_still(&mut looks).await?;
            match self.batch(pace.rows(), &mut range, aside.take()).await {
                Ok(Batch::Done { elapsed, total }) => {
                    if self.sweep != PassKind::Compare {
                        pace.spare(total);
                    }
                    pace.took(elapsed);
                    failures = 0;
                    self.between_batches(&mut vacuum).await?;
                }
                Ok(Batch::Taken) => sleep(TAKEN).await,
                Ok(Batch::Ended) => return Ok(()),
                Err(PlanError::Operation(error)) if passes(&error) && failures < FAILURES => {
                    failures += 1;
                    pace.shrink();
                    tracing::debug!(%error, failures, kind = self.sweep.kind(), "batch failed; trying it again");
                    give_way().await;
                }
                Err(PlanError::Operation(Error::Database(error))) if concerns_a_row(&error) => {
                    if !pace.halve() {
                        aside = Some(error.to_string());
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Outside of any transaction: the one place at which a worker is held up.
    async fn between_batches(&self, vacuum: &mut Vacuum) -> Result<(), PlanError> {
        if self.sweep != PassKind::Compare {
            vacuum.wait(&self.outline.pool, self.written()).await?;
        }
        Ok(())
    }

    /// Waits while the throttle has a reason, and lets people see it. Leaves with the phase.
    async fn hold_still(&self, looks: &mut Looks) -> Result<(), PlanError> {
        let Outline { pool, throttle, .. } = self.outline;
        let (kind, mut told) = (self.sweep.kind(), None);
        while let Some(held) = throttle.held(looks, pool).await? {
            if told.as_ref() != Some(&held) {
                tracing::info!(migration = self.migration.name(), kind, why = held.why, "held up");
                self.job.held(pool, &held.why).await?;
            }
            self.migration.work().held(kind, held.kind, Throttle::pause().await);
            told = Some(held);
            if self.migration.current().is_none_or(|(epoch, _)| epoch != self.job.epoch) {
                return Err(PlanError::PhaseLeft);
            }
        }
        Ok(())
    }

    async fn begin(&self) -> Result<PinnedTx, PlanError> {
        let tx = begin_unpaused(&self.outline.pool, self.sweep, self.migration, LIMITS).await?;
        if tx.epoch() == self.job.epoch { Ok(tx) } else { Err(PlanError::PhaseLeft) }
    }

    /// Does the next rows of a range, or sets the next one aside.
    async fn batch(
        &self,
        rows: u32,
        last: &mut Option<i16>,
        aside: Option<String>,
    ) -> Result<Batch, PlanError> {
        let mut tx = self.begin().await?;
        let began = Instant::now();
        let range = match self.job.claim(&mut tx, *last).await? {
            Claim::Range(range) => range,
            Claim::Taken => return Ok(Batch::Taken),
            Claim::Nothing => {
                let size = TableSize::estimate(&mut tx, self.written()).await?;
                self.job.finish(&mut tx, size).await?;
                tx.commit().await?;
                return Ok(Batch::Ended);
            }
        };
        *last = Some(range.number);
        let (done, mut step) = self.next(&mut tx, &range, rows).await?;
        match aside {
            Some(error) => self.set_aside(&mut tx, &done, &error).await?,
            None => {
                let span = Span::Between { from: range.from.clone(), to: done.clone() };
                (step.changed, step.differences) = self.step(&mut tx, &span).await?;
            }
        }
        let total = self.job.advance(&mut tx, &range, &done, &step).await?;
        tx.commit().await?;
        self.migration.work().did(self.sweep.kind(), step.rows);
        self.migration.work().expects(self.sweep.kind(), total);
        Ok(Batch::Done { elapsed: began.elapsed(), total })
    }

    /// The last key of the range's next rows, and how many these are.
    async fn next(
        &self,
        tx: &mut PgConnection,
        range: &Range,
        rows: u32,
    ) -> Result<(KeyText, Step), sqlx::Error> {
        let left = Span::Between { from: range.from.clone(), to: range.to.clone() };
        let end = self.scope.key.batch_end(&self.scope.tables(), &left, &rows.to_string());
        let found = end.fetch_all(tx).await?;
        let row = found.first().ok_or(sqlx::Error::RowNotFound)?;
        let (count, last): (i64, Option<KeyText>) = (row.try_get("rows")?, row.try_get("last")?);
        let step = Step { rows: count, ..Step::default() };
        // Fewer than wanted: there are no more in this range.
        let done = last.filter(|_| count == i64::from(rows)).unwrap_or_else(|| range.to.clone());
        Ok((done, step))
    }

    /// Returns how many rows were changed, and how many differ.
    async fn step(&self, tx: &mut PgConnection, span: &Span) -> Result<(i64, i64), PlanError> {
        let Sides { old, new, .. } = self.scope.sides;
        let mapped = self.map(tx, span).await?;
        match self.sweep {
            PassKind::Forward => {
                let changed = self.scope.copy_forward(span, &mapped).execute(tx).await?;
                Ok((changed + self.remove_orphans(tx, new, old, span).await?, 0))
            }
            PassKind::Back => {
                let changed = self.scope.copy_back(span, &mapped).execute(tx).await?;
                Ok((changed + self.remove_orphans(tx, old, new, span).await?, 0))
            }
            PassKind::Compare => Ok((0, self.compare(tx, span, &mapped).await?)),
        }
    }

    /// Runs the mappings that are in Rust, and sets aside what they refuse.
    async fn map(&self, tx: &mut PgConnection, span: &Span) -> Result<Mapped, PlanError> {
        let Sides { old, new, forward, backward } = self.scope.sides;
        let mut mapped = Mapped::default();
        let copies = self.sweep != PassKind::Compare;
        if matches!(forward.code, MappingCode::Rust(_)) {
            let rows =
                self.scope.rows(old, span, self.sweep == PassKind::Forward).fetch_all(&mut *tx).await?;
            mapped.forward = self.map_rows(tx, forward, &rows, 'f', copies).await?;
        }
        if self.sweep != PassKind::Forward && matches!(backward.code, MappingCode::Rust(_)) {
            let rows = self.scope.rows(new, span, copies).fetch_all(&mut *tx).await?;
            mapped.backward = self.map_rows(tx, backward, &rows, 'b', copies).await?;
        }
        let in_rust = [forward, backward].iter().any(|mapping| matches!(mapping.code, MappingCode::Rust(_)));
        if self.sweep == PassKind::Compare && in_rust {
            let rows = self.scope.rows_back(span, &mapped).fetch_all(&mut *tx).await?;
            mapped.trip = match forward.code {
                MappingCode::Rust(_) => self.map_rows(tx, forward, &rows, 't', false).await?,
                MappingCode::Sql(_) => None,
            };
        }
        Ok(mapped)
    }

    async fn map_rows(
        &self,
        tx: &mut PgConnection,
        mapping: &Mapping,
        rows: &[sqlx::postgres::PgRow],
        letter: char,
        set_aside: bool,
    ) -> Result<Option<String>, PlanError> {
        let (json, failed): (String, Failed) = mapping.run(&self.scope.key, rows, letter)?;
        if set_aside {
            for (key, error) in failed {
                self.set_aside(tx, &key, &error).await?;
            }
        }
        Ok(Some(json))
    }

    async fn set_aside(&self, tx: &mut PgConnection, key: &[String], error: &str) -> Result<(), PlanError> {
        let (count, limit) = (self.job.set_aside(tx, key, error).await?, self.outline.batches.bad_rows);
        if count > i64::from(limit) {
            return Err(PlanError::Refused(format!(
                "more than {limit} rows can't be mapped; the last one is {}: {error}",
                shown(key)
            )));
        }
        tracing::warn!(migration = self.migration.name(), key = shown(key), error, "a row was set aside");
        Ok(())
    }

    /// Tries the rows that were set aside once more: somebody may have seen to them.
    async fn retry_bad_rows(&self) -> Result<(), PlanError> {
        let mut tx = self.begin().await?;
        let keys = self.job.bad_rows(&mut tx).await?;
        tx.rollback().await?;
        for key in keys {
            let mut tx = self.begin().await?;
            self.job.is_good(&mut tx, &key).await?;
            let done = match self.step(&mut tx, &Span::Keys(vec![key.clone()])).await {
                Ok((changed, differences)) => Step { rows: 0, changed, differences },
                Err(PlanError::Operation(Error::Database(error))) if concerns_a_row(&error) => continue,
                Err(PlanError::Operation(error)) if passes(&error) => continue,
                Err(error) => return Err(error),
            };
            self.job.count(&mut tx, &done).await?;
            tx.commit().await?;
        }
        Ok(())
    }

    /// Removes rows that the other table does not have. They are locked first; then a statement that sees what was
    /// committed until then decides.
    async fn remove_orphans(
        &self,
        tx: &mut PgConnection,
        table: &str,
        other: &str,
        span: &Span,
    ) -> Result<i64, sqlx::Error> {
        if table == other {
            return Ok(0);
        }
        let keys = keys(&self.scope.orphans(table, other, span).fetch_all(&mut *tx).await?)?;
        if keys.is_empty() {
            return Ok(0);
        }
        self.scope.delete_orphans(table, other, &Span::Keys(keys)).execute(tx).await
    }

    /// Compares without a lock, and then once more, with their rows locked, those that seemed to differ: a row that
    /// is being written is no difference, and what is reported is true of its latest version.
    async fn compare(&self, tx: &mut PgConnection, span: &Span, mapped: &Mapped) -> Result<i64, PlanError> {
        let suspects = keys(&self.scope.differences(span, mapped).fetch_all(&mut *tx).await?)?;
        if suspects.is_empty() {
            return Ok(0);
        }
        let span = Span::Keys(suspects);
        for table in self.scope.tables() {
            self.scope.lock(table, &span).execute(&mut *tx).await?;
        }
        let mapped = self.map(tx, &span).await?;
        let found = self.scope.differences(&span, &mapped).fetch_all(&mut *tx).await?;
        for row in &found {
            let (key, what): (KeyText, String) = (row.try_get("key")?, row.try_get("what")?);
            tracing::warn!(migration = self.migration.name(), key = shown(&key), what, "the sides differ");
            let values = [row.try_get("expected")?, row.try_get("found")?];
            self.job.differs(tx, &key, &what, values, self.outline.sensitive).await?;
        }
        Ok(i64::try_from(found.len()).unwrap_or(i64::MAX))
    }

    /// The table that the pass writes.
    fn written(&self) -> &str {
        if self.sweep == PassKind::Back { &self.scope.sides.old } else { &self.scope.sides.new }
    }

    /// An error with what a scan found, if it found something.
    async fn report(&self) -> Result<(), PlanError> {
        let mut tx = ledger::begin(&self.outline.pool, ledger::READ_COMMITTED).await?;
        let (differences, found) = self.job.findings(&mut tx).await?;
        tx.rollback().await?;
        if differences == 0 {
            return Ok(());
        }
        let (old, new) = (&self.scope.sides.old, &self.scope.sides.new);
        let tables = if old == new { old.clone() } else { format!("{old} and {new}") };
        let mut text = format!("{differences} rows of {tables} can't be relied on");
        let names = self.scope.key.plain_names().join(", ");
        for (what, keys) in found {
            let what = match &*what {
                "different" => "the new side is not what `forward` makes of the old one",
                "missing" => "the new side lacks rows",
                "extra" => "the new side has rows that the old one does not have",
                _ => "`forward` of `backward` does not give the new side's value back",
            };
            let keys: Vec<String> = keys.iter().map(|key| shown(key)).collect();
            text += &format!("; {what}, {names} in [{}]", keys.join(", "));
        }
        text += ". Mend these, or go back to `expand`: going forward again makes another copy";
        Err(PlanError::Refused(text))
    }
}

fn keys(rows: &[sqlx::postgres::PgRow]) -> Result<Vec<KeyText>, sqlx::Error> {
    rows.iter().map(|row| row.try_get("key")).collect()
}

/// Whether an error may be a single row's: its data, a constraint, or an exception that the expression raised.
fn concerns_a_row(error: &sqlx::Error) -> bool {
    sql_state(error).is_some_and(|state| ["22", "23", "P0"].iter().any(|class| state.starts_with(class)))
}
