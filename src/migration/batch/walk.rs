//! A walk over the rows of one table in batches, without a job in the ledger.

use sqlx::{AssertSqlSafe, Executor, Row};
use tokio::time::Instant;

use super::errors::is_transient;
use super::keyset::{Keyset, Span};
use super::pace::Pace;
use super::pass::Outline;
use super::table_size::count as count_rows;
use super::throttle::{Throttle, ThrottleState};
use super::transaction::{BATCH_LIMITS, MAX_FAILURES, back_off, begin};
use crate::ledger::jobs::{self, KeyText};
use crate::migration::catalog::{ROW_WORK_SETTINGS, SKIP_TRIGGERS};
use crate::migration::coordinator::PlanError;
use crate::migration::phase::Phase;
use crate::migration::runtime::{Error, Migration};

/// Runs a statement over the rows of a table in batches, each a transaction in one of these phases. Returns how many rows
/// the statements concerned.
///
/// Its progress is what the migration waits for: `what` says what it does.
///
/// It keeps no checkpoint, so a statement must find nothing to do where it has run before.
pub(crate) async fn walk(
    outline: &Outline,
    what: &str,
    (table, key): (&str, &Keyset),
    phases: &[Phase],
    statement: impl Fn(&Span) -> String + Send,
    migration: &Migration,
) -> Result<u64, PlanError> {
    let (tables, mut from) = ([table], None::<KeyText>);
    let mut tx = begin(&outline.pool, phases, migration).await?;
    let last = key.last(&tables).fetch_all(&mut tx).await?.pop();
    let mut progress = Progress::new(what, count_rows(&mut tx, table).await?.rows);
    tx.rollback().await?;
    let Some(to) = last.map(|row| row.try_get::<KeyText, _>(0)).transpose()? else { return Ok(0) };
    let skip = if outline.skips_triggers { SKIP_TRIGGERS } else { "" };
    let settings = format!("{}{BATCH_LIMITS}{skip}", *ROW_WORK_SETTINGS);
    let (mut pace, mut throttle) = (Pace::new(&outline.batches), ThrottleState::default());
    let (mut concerned, mut failures) = (0, 0);
    loop {
        migration.note(&progress.text());
        let paused = outline.throttle.check_now(&mut throttle, &outline.pool).await?;
        let mut tx = begin(&outline.pool, phases, migration).await?;
        if jobs::is_paused(&mut tx, &settings, migration.id()).await? || paused.is_some() {
            tx.rollback().await?;
            Throttle::pause().await;
            continue;
        }
        let began = Instant::now();
        let rows = pace.rows();
        let left = Span::Between { from: from.clone(), to: to.clone() };
        let end = key.batch_end(&tables, &left, &rows.to_string()).fetch_all(&mut tx).await?.pop();
        let end = end.ok_or(sqlx::Error::RowNotFound)?;
        let (count, last): (i64, Option<KeyText>) = (end.try_get("rows")?, end.try_get("last")?);
        let Some(last) = last else { break };
        let batch = statement(&Span::Between { from: from.clone(), to: last.clone() });
        let done = match tx.execute(AssertSqlSafe(batch)).await {
            Ok(done) => {
                tx.commit().await?;
                done.rows_affected()
            }
            Err(error) => {
                let error = Error::from(error);
                if !is_transient(&error) || failures >= MAX_FAILURES {
                    return Err(error.into());
                }
                failures += 1;
                pace.shrink();
                tx.rollback().await?;
                back_off().await;
                continue;
            }
        };
        failures = 0;
        concerned += done;
        progress.done += count;
        pace.record(began.elapsed());
        if count < i64::from(rows) {
            break;
        }
        from = Some(last);
    }
    migration.note("");
    Ok(concerned)
}

/// How far a walk has come.
struct Progress<'a> {
    what: &'a str,
    began: Instant,
    done: i64,
    expected: i64,
}

impl<'a> Progress<'a> {
    fn new(what: &'a str, expected: i64) -> Self {
        Self { what, began: Instant::now(), done: 0, expected }
    }

    fn text(&self) -> String {
        let Self { what, done, expected, .. } = self;
        let rate = *done as f64 / self.began.elapsed().as_secs_f64().max(1e-3);
        let mut text = format!("{what}: {done} of about {} rows", expected.max(done));
        if *done > 0 {
            let left = (expected - done).max(0) as f64 / rate;
            text += &format!(", {rate:.0} rows/s, {left:.0} s left");
        }
        text
    }
}
