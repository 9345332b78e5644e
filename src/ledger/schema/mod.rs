//! The ledger's schema: how it comes into being, and from one version to the next.
//!
//! Builds of two versions work side by side during a deploy. So a step adds, and takes away only what no build that may
//! still run uses: that is what its `compatible_from` says.

use sqlx::{Executor, PgConnection};

use crate::ledger::error::LedgerError;
use crate::ledger::locks;

use crate::ledger::sqlstate::sql_state;
use crate::ledger::unprepared;

/// The version of the ledger's schema that this library was written for.
pub const SCHEMA_VERSION: i32 = STEPS[STEPS.len() - 1].version;

/// An installation makes all of them, an upgrade those that the ledger lacks.
const STEPS: [Step; 1] = [Step { version: 1, compatible_from: 1, sql: include_str!("1.sql") }];

/// What leads to a version. A change of a table that writers use is one that waits for nobody else and takes a moment, as
/// for any other table under load.
struct Step {
    version: i32,
    /// The oldest library that still works afterwards.
    compatible_from: i32,
    sql: &'static str,
}

/// What a ledger says of itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Version {
    pub(super) number: i32,
    pub(super) compatible_from: i32,
}

/// The fence reads these tables in every write transaction: who waits for them is in everybody's way, so not for long.
const LOCK_TIMEOUT: &str = "set local lock_timeout = '200ms'";

/// The version of the ledger that is there.
pub(super) async fn version(connection: &mut PgConnection) -> Result<Option<Version>, sqlx::Error> {
    // From the catalogue's table: `to_regclass` would answer from what the session remembers.
    let is_there: bool = unprepared::query_scalar(
        "select exists (select from pg_tables where schemaname = 'cutover' and tablename = 'ledger')",
    )
    .fetch_one(&mut *connection)
    .await?;
    if !is_there {
        return Ok(None);
    }
    let (number, compatible_from) =
        unprepared::query_as("select version, compatible_from from cutover.ledger")
            .fetch_one(connection)
            .await?;
    Ok(Some(Version { number, compatible_from }))
}

/// Makes every step that the ledger lacks. Nothing is changed when it fails.
pub(super) async fn bring_up_to_date(tx: &mut PgConnection, role: &str) -> Result<(), LedgerError> {
    unprepared::query("select pg_advisory_xact_lock($1)").bind(locks::INSTALL).execute(&mut *tx).await?;
    // Another process may have been faster.
    let found = version(tx).await?.map(|version| version.number);
    tx.execute(LOCK_TIMEOUT).await?;
    for step in STEPS.iter().filter(|step| Some(step.version) > found) {
        make(tx, step).await.map_err(|error| match (sql_state(&error).as_deref(), found) {
            (Some("42501"), None) => LedgerError::NotInstalled { role: role.to_owned() },
            (Some("42501"), Some(found)) => LedgerError::NotUpgraded { role: role.to_owned(), found },
            (Some("55P03"), _) => LedgerError::Busy,
            _ => error.into(),
        })?;
    }
    Ok(())
}

async fn make(tx: &mut PgConnection, step: &Step) -> Result<(), sqlx::Error> {
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
    fn every_step_leads_to_the_next_version_and_leaves_the_one_before_working() {
        for (before, step) in (0..).zip(&STEPS) {
            assert_eq!(step.version, before + 1);
            assert!(step.compatible_from <= before.max(1), "version {}", step.version);
        }
    }
}
