//! The ledger's schema: how it is installed and upgraded.
//!
//! Builds of two versions run side by side during a deploy. A step therefore adds objects, and removes only what no build
//! uses that may still run: `compatible_from` says which builds those are.

use sqlx::{Executor, PgConnection};

use crate::ledger::error::LedgerError;
use crate::ledger::locks;
use crate::ledger::sqlstate::sql_state;
use crate::ledger::unprepared;

/// The version of the ledger's schema that this library was written for.
pub const SCHEMA_VERSION: i32 = STEPS[STEPS.len() - 1].version;

/// An installation runs all of them, an upgrade those that the ledger lacks.
const STEPS: [Step; 1] = [Step { version: 1, compatible_from: 1, sql: include_str!("1.sql") }];

/// What leads to a version of the ledger's schema.
///
/// Writers use these tables, so a step must be safe for tables under load: each statement waits for no more than
/// `LOCK_TIMEOUT` and then takes a moment.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// The version that it leads to.
    pub version: i32,
    /// The oldest version of the library that still works afterwards.
    pub compatible_from: i32,
    /// Its statements.
    pub sql: &'static str,
}

/// The steps of this library, and one more in a test of an upgrade.
fn steps(next: Option<Step>) -> impl Iterator<Item = Step> {
    STEPS.into_iter().chain(next)
}

/// The version that a ledger must have.
pub(super) fn needed(next: Option<Step>) -> i32 {
    next.map_or(SCHEMA_VERSION, |step| step.version)
}

/// What an installed ledger says about itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Version {
    pub(super) number: i32,
    pub(super) compatible_from: i32,
}

/// The fence reads these tables in every write transaction, and every later request queues behind a waiting one.
const LOCK_TIMEOUT: &str = "set local lock_timeout = '200ms'";

/// The version of the installed ledger; `None`: there is none.
pub(super) async fn version(connection: &mut PgConnection) -> Result<Option<Version>, sqlx::Error> {
    // A query of the catalog sees what others have committed. `to_regclass` may answer from the session's cache.
    let exists: bool = unprepared::query_scalar(
        "select exists (select from pg_tables where schemaname = 'cutover' and tablename = 'ledger')",
    )
    .fetch_one(&mut *connection)
    .await?;
    if !exists {
        return Ok(None);
    }
    let (number, compatible_from) =
        unprepared::query_as("select version, compatible_from from cutover.ledger")
            .fetch_one(connection)
            .await?;
    Ok(Some(Version { number, compatible_from }))
}

/// Runs every step that the ledger lacks. Nothing has changed if it fails.
pub(super) async fn upgrade(
    tx: &mut PgConnection,
    role: &str,
    next: Option<Step>,
) -> Result<(), LedgerError> {
    unprepared::query("select pg_advisory_xact_lock($1)").bind(locks::INSTALL).execute(&mut *tx).await?;
    // Another process may have upgraded it meanwhile.
    let found = version(tx).await?.map(|version| version.number);
    tx.execute(LOCK_TIMEOUT).await?;
    for step in steps(next).filter(|step| Some(step.version) > found) {
        run(tx, step).await.map_err(|error| match (sql_state(&error).as_deref(), found) {
            (Some("42501"), None) => LedgerError::NotInstalled { role: role.to_owned() },
            (Some("42501"), Some(found)) => {
                LedgerError::NotUpgraded { role: role.to_owned(), found, needs: needed(next) }
            }
            (Some("55P03"), _) => LedgerError::Busy,
            _ => error.into(),
        })?;
    }
    Ok(())
}

async fn run(tx: &mut PgConnection, step: Step) -> Result<(), sqlx::Error> {
    tx.execute(step.sql).await?;
    unprepared::query(
        "insert into cutover.ledger (version, compatible_from) values ($1, $2) \
         on conflict (only_row) do update set version = excluded.version, compatible_from = excluded.compatible_from",
    )
    .bind(step.version)
    .bind(step.compatible_from)
    .execute(tx)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_adds_one_version_and_keeps_the_previous_library() {
        for (before, step) in (0..).zip(&STEPS) {
            assert_eq!(step.version, before + 1);
            assert!(step.compatible_from <= before.max(1), "version {}", step.version);
        }
    }
}
