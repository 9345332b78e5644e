//! What people see of migrations. Nothing here changes or locks anything.

use sqlx::PgConnection;

use super::error::{AdminError, find};
pub use crate::ledger::history::Event;
pub use crate::ledger::reports::{
    BadRow, Difference, ExternalWriteReport, InstanceReport, MigrationReport, RepairReport, WorkReport,
};
use crate::ledger::{Ledger, history as events, reports};

/// The id of the migration of this name, if one was given.
async fn id_of(tx: &mut PgConnection, name: Option<&str>) -> Result<Option<i32>, AdminError> {
    match name {
        Some(name) => Ok(Some(find(tx, name).await?.id)),
        None => Ok(None),
    }
}

/// A reason with the name of the migration in its commands, so that they can be run as they are.
pub(super) fn addressed(text: &str, name: &str) -> String {
    text.replace("<migration>", name)
}

/// Reports on every migration in the ledger, or on one: `name` or `fleet/name`.
///
/// # Errors
///
/// [`AdminError`].
///
/// # Cancel safety
///
/// Safe: it only reads.
pub async fn report(ledger: &Ledger, only: Option<&str>) -> Result<Vec<MigrationReport>, AdminError> {
    let mut reports = reports::migrations(&*ledger.pool(), only).await?;
    for report in &mut reports {
        let name = format!("{}/{}", report.fleet, report.name);
        report.waits_for = report.waits_for.take().map(|text| addressed(&text, &name));
    }
    if let Some(name) = only.filter(|_| reports.len() != 1) {
        // The error names what there is.
        find(&mut *ledger.begin().await?, name).await?;
    }
    Ok(reports)
}

/// The differences that the latest scan of a migration (`name` or `fleet/name`) found, up to `limit`. A scan records the
/// first thousand.
///
/// # Errors
///
/// [`AdminError`].
///
/// # Cancel safety
///
/// Safe: it only reads.
pub async fn differences(ledger: &Ledger, name: &str, limit: u32) -> Result<Vec<Difference>, AdminError> {
    let mut tx = ledger.begin().await?;
    let found = find(&mut tx, name).await?;
    Ok(reports::differences(&mut tx, found.id, limit).await?)
}

/// The rows of a migration (`name` or `fleet/name`) that could not be mapped, oldest first, up to `limit`. The backfill or
/// scan tries them again as long as it runs, and does not end without them.
///
/// # Errors
///
/// [`AdminError`].
///
/// # Cancel safety
///
/// Safe: it only reads.
pub async fn bad_rows(ledger: &Ledger, name: &str, limit: u32) -> Result<Vec<BadRow>, AdminError> {
    let mut tx = ledger.begin().await?;
    let found = find(&mut tx, name).await?;
    Ok(reports::bad_rows(&mut tx, found.id, limit).await?)
}

/// The rows that wait for repair, oldest first, up to `limit`: of every migration, or of one (`name` or `fleet/name`).
///
/// # Errors
///
/// [`AdminError`].
///
/// # Cancel safety
///
/// Safe: it only reads.
pub async fn repairs(
    ledger: &Ledger,
    only: Option<&str>,
    limit: u32,
) -> Result<Vec<RepairReport>, AdminError> {
    let mut tx = ledger.begin().await?;
    let id = id_of(&mut tx, only).await?;
    Ok(reports::repairs(&mut tx, id, limit).await?)
}

/// How many rows of a migration wait for repair: those that [`retry_repairs`](super::retry_repairs) would make due.
///
/// # Errors
///
/// [`AdminError`].
///
/// # Cancel safety
///
/// Safe: it only reads.
pub async fn count_repairs(ledger: &Ledger, migration: &str) -> Result<i64, AdminError> {
    let mut tx = ledger.begin().await?;
    let found = find(&mut tx, migration).await?;
    Ok(reports::count_repairs(&mut tx, found.id).await?)
}

/// The applications that wrote a migrating table without the library, latest first, up to `limit`: of every migration, or
/// of one (`name` or `fleet/name`).
///
/// Writes that the guard trigger refused are not included. The server's log has them.
///
/// # Errors
///
/// [`AdminError`].
///
/// # Cancel safety
///
/// Safe: it only reads.
pub async fn external_writes(
    ledger: &Ledger,
    only: Option<&str>,
    limit: u32,
) -> Result<Vec<ExternalWriteReport>, AdminError> {
    let mut tx = ledger.begin().await?;
    let id = id_of(&mut tx, only).await?;
    Ok(reports::external_writes(&mut tx, id, limit).await?)
}

/// The latest events, newest first, up to `limit`: of every migration, or of one (`name` or `fleet/name`).
///
/// # Errors
///
/// [`AdminError`].
///
/// # Cancel safety
///
/// Safe: it only reads.
pub async fn history(ledger: &Ledger, only: Option<&str>, limit: u32) -> Result<Vec<Event>, AdminError> {
    let mut tx = ledger.begin().await?;
    id_of(&mut tx, only).await?;
    Ok(events::list(&mut tx, only, limit).await?)
}
