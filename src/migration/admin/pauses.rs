use super::commands::{AdminError, find, record};
use crate::ledger::{Ledger, unprepared};

/// Holds up the work on a migration's rows: backfill, reverse backfill and scan, on every instance, also work that
/// begins later. Batches under way still end. Row repairs and changes of the schema are not held up.
///
/// Asking again changes nothing: whoever paused it first stays named.
///
/// # Errors
///
/// [`AdminError`]; an unknown migration is one.
///
/// # Cancel safety
///
/// Safe: paused or not paused.
pub async fn pause_work(ledger: &Ledger, migration: &str, actor: &str) -> Result<(), AdminError> {
    set(ledger, migration, actor, true).await
}

/// Lets the work on a migration's rows go on where it stopped.
///
/// # Errors
///
/// [`AdminError`]; an unknown migration is one.
///
/// # Cancel safety
///
/// Safe: resumed or not resumed.
pub async fn resume_work(ledger: &Ledger, migration: &str, actor: &str) -> Result<(), AdminError> {
    set(ledger, migration, actor, false).await
}

async fn set(ledger: &Ledger, migration: &str, actor: &str, paused: bool) -> Result<(), AdminError> {
    let mut tx = ledger.begin().await?;
    let found = find(&mut tx, migration).await?;
    let changed = unprepared::query(
        "update cutover.migrations set paused_at = case when $2 then clock_timestamp() end, \
                paused_by = case when $2 then $3 end \
         where id = $1 and (paused_at is not null) <> $2",
    )
    .bind(found.id)
    .bind(paused)
    .bind(actor)
    .execute(&mut *tx)
    .await?;
    if changed.rows_affected() == 1 {
        record(&mut tx, &found, if paused { "work paused" } else { "work resumed" }, actor, "").await?;
    }
    tx.commit().await?;
    Ok(())
}
