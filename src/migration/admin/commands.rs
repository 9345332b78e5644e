//! What people change about a migration. Each command is recorded in the history with its actor.

use sqlx::PgConnection;

use super::error::{AdminError, find_and_lock};
use crate::ledger::Ledger;
use crate::ledger::commands::{self, NamedMigration};
use crate::ledger::history::{self, NewEvent};
use crate::migration::phase::{Desired, Phase};

/// Who changes a migration, and why, for the history.
///
/// A `&str` is an actor without a reason.
#[derive(Debug, Clone, Copy)]
pub struct Actor<'a> {
    pub(super) name: &'a str,
    pub(super) reason: &'a str,
}

impl<'a> Actor<'a> {
    /// An actor that gives a reason.
    pub fn with_reason(name: &'a str, reason: &'a str) -> Self {
        Self { name, reason }
    }
}

impl<'a> From<&'a str> for Actor<'a> {
    fn from(name: &'a str) -> Self {
        Self { name, reason: "" }
    }
}

/// Sets the desired phase. The driver moves towards it, one step at a time, as soon as each step's requirements hold.
///
/// This has an effect only on builds that take the desired phase from the ledger, not on those that take it from a flag.
///
/// # Errors
///
/// [`AdminError`].
///
/// # Cancel safety
///
/// Safe: the phase is set, or it is not.
pub async fn set_phase(
    ledger: &Ledger,
    migration: &str,
    to: Desired,
    actor: impl Into<Actor<'_>>,
) -> Result<(), AdminError> {
    let actor = actor.into();
    let mut tx = ledger.begin().await?;
    let found = find_and_lock(&mut tx, migration).await?;
    found.refuse_if_ended()?;
    commands::set_desired(&mut tx, found.id, &to.to_string(), actor.name).await?;
    record(&mut tx, &found, &format!("desired phase set to {to}"), actor).await?;
    tx.commit().await?;
    Ok(())
}

/// Approves that the old side of a migration in `retire` is dropped. Returns when the approval expires, as ISO 8601.
///
/// It is for one attempt: it expires after seven days, and when the migration leaves `retire`. A second approval replaces it.
///
/// # Errors
///
/// [`AdminError`]; [`AdminError::NotInRetire`] in any other phase.
///
/// # Cancel safety
///
/// Safe: the drop is approved, or it is not.
pub async fn approve(
    ledger: &Ledger,
    migration: &str,
    actor: impl Into<Actor<'_>>,
) -> Result<String, AdminError> {
    let actor = actor.into();
    let mut tx = ledger.begin().await?;
    let found = find_and_lock(&mut tx, migration).await?;
    if found.phase != Phase::Retire.name() {
        return Err(AdminError::NotInRetire { name: migration.to_owned(), phase: found.phase });
    }
    let expires = commands::approve(&mut tx, found.id, actor.name, actor.reason).await?;
    record(&mut tx, &found, &format!("contract approved until {expires}"), actor).await?;
    tx.commit().await?;
    Ok(expires)
}

/// Pauses the backfills and scans of a migration on every instance, including those that start later. A batch that is
/// running ends first. Row repairs and schema changes are not paused.
///
/// A second call changes nothing; the first actor stays recorded.
///
/// # Errors
///
/// [`AdminError`].
///
/// # Cancel safety
///
/// Safe: they are paused, or they are not.
pub async fn pause_work(
    ledger: &Ledger,
    migration: &str,
    actor: impl Into<Actor<'_>>,
) -> Result<(), AdminError> {
    let actor = actor.into();
    let mut tx = ledger.begin().await?;
    let found = find_and_lock(&mut tx, migration).await?;
    if commands::pause(&mut tx, found.id, actor.name).await? {
        record(&mut tx, &found, "backfills and scans paused", actor).await?;
    }
    tx.commit().await?;
    Ok(())
}

/// Resumes the backfills and scans of a migration where they stopped.
///
/// # Errors
///
/// [`AdminError`].
///
/// # Cancel safety
///
/// Safe: they are resumed, or they are not.
pub async fn resume_work(
    ledger: &Ledger,
    migration: &str,
    actor: impl Into<Actor<'_>>,
) -> Result<(), AdminError> {
    let actor = actor.into();
    let mut tx = ledger.begin().await?;
    let found = find_and_lock(&mut tx, migration).await?;
    if commands::resume(&mut tx, found.id).await? {
        record(&mut tx, &found, "backfills and scans resumed", actor).await?;
    }
    tx.commit().await?;
    Ok(())
}

/// Makes every row of a migration that waits for repair due now, also those that the library has given up. Returns how
/// many there are.
///
/// # Errors
///
/// [`AdminError`].
///
/// # Cancel safety
///
/// Safe: all rows are due, or none was changed.
pub async fn retry_repairs(
    ledger: &Ledger,
    migration: &str,
    actor: impl Into<Actor<'_>>,
) -> Result<u64, AdminError> {
    let actor = actor.into();
    let mut tx = ledger.begin().await?;
    let found = find_and_lock(&mut tx, migration).await?;
    let retried = commands::retry_repairs(&mut tx, found.id).await?;
    record(&mut tx, &found, &format!("retry of {retried} repairs requested"), actor).await?;
    tx.commit().await?;
    Ok(retried)
}

pub(super) async fn record(
    tx: &mut PgConnection,
    migration: &NamedMigration,
    event: &str,
    actor: Actor<'_>,
) -> Result<(), sqlx::Error> {
    let NamedMigration { fleet, name, epoch, .. } = migration;
    let Actor { name: actor, reason } = actor;
    history::record(tx, &NewEvent { fleet, migration: name, event, epoch: *epoch, actor, reason }).await
}
