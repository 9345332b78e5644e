//! The beginning and the end of a job, which depend on the kind of its pass.

use sqlx::PgConnection;

use super::keyset::display_key;
use super::kind::PassKind;
use crate::ledger::jobs::{self, Job, KeyText, TableSize};
use crate::ledger::{bad_rows, differences};
use crate::migration::coordinator::PlanError;
use crate::migration::phase::Side;

/// How many keys an error names.
pub(crate) const NAMED_KEYS: i64 = 5;

/// The work of a job, measured when the job is created.
#[derive(Debug)]
pub(crate) struct Measured {
    /// The last key of each range. Rows above the last key were written at an epoch that writes both sides.
    pub(crate) range_ends: Vec<KeyText>,
    pub(crate) size: TableSize,
}

/// Continues the job of this epoch or creates it. It counts as started at `since`; the default is now. `None` if the
/// side that the pass completes is complete.
pub(crate) async fn open(
    tx: &mut PgConnection,
    migration: i32,
    epoch: i32,
    kind: PassKind,
    since: Option<&str>,
    measure: impl AsyncFnOnce(&mut PgConnection) -> Result<Measured, sqlx::Error>,
) -> Result<Option<Job>, PlanError> {
    let (old, new) = jobs::lock_completeness(tx, migration, epoch).await?.ok_or(PlanError::PhaseLeft)?;
    if kind.completes().is_some_and(|side| if side == Side::Old { old } else { new }) {
        return Ok(None);
    }
    if let Some(job) = jobs::find_open(tx, migration, epoch, kind.name()).await? {
        return Ok(Some(job));
    }
    jobs::delete_unfinished(tx, migration, kind.name()).await?;
    bad_rows::remove_all(tx, migration, kind.name()).await?;
    let Measured { range_ends, size } = measure(tx).await?;
    Ok(Some(jobs::create(tx, (migration, epoch, kind.name()), size, since, &range_ends).await?))
}

/// Finishes a job and marks the side that it completes.
///
/// # Errors
///
/// [`PlanError::Refused`] if rows are set aside, [`PlanError::PhaseLeft`] if the migration has left the job's epoch.
pub(crate) async fn finish(
    tx: &mut PgConnection,
    job: &Job,
    kind: PassKind,
    size: TableSize,
) -> Result<(), PlanError> {
    let (rows, count) = bad_rows::first(tx, job, NAMED_KEYS).await?;
    if count > 0 {
        let named: Vec<String> =
            rows.iter().map(|(key, error)| format!("{}: {error}", display_key(key))).collect();
        return Err(PlanError::Refused(format!(
            "{count} row{} could not be mapped: {}. Correct these rows or the mapping; they are tried again \
             automatically",
            if count == 1 { "" } else { "s" },
            named.join("; ")
        )));
    }
    let completes = kind.completes().map(|side| if side == Side::Old { "old" } else { "new" });
    if job.finish(tx, completes, size).await? { Ok(()) } else { Err(PlanError::PhaseLeft) }
}

/// The job cannot go on, because it has lost ranges. It is created again.
pub(crate) fn lost(kind: PassKind) -> PlanError {
    PlanError::Refused(format!(
        "rows of cutover.job_ranges were deleted, so the {} begins again",
        kind.name()
    ))
}

/// How many rows differ, as the beginning of a sentence. `of` begins with a space, or is empty.
pub(crate) fn rows_differ(count: i64, of: &str) -> String {
    if count == 1 { format!("1 row{of} differs") } else { format!("{count} rows{of} differ") }
}

/// The error that names what a scan found, if it found something. `describe` turns the kind of a difference and its first
/// keys into text.
pub(crate) async fn findings(
    tx: &mut PgConnection,
    job: &Job,
    describe: impl Fn(&str, &[KeyText]) -> String,
) -> Result<Option<(i64, String)>, sqlx::Error> {
    let (count, found) = differences::summary(tx, job, NAMED_KEYS).await?;
    let text: Vec<String> = found.iter().map(|(what, keys)| describe(what, keys)).collect();
    Ok((count > 0).then(|| (count, text.join("; "))))
}
