//! Changes of the schema under load.
//!
//! `ALTER TABLE` waits for every transaction on the table, and every later transaction waits behind it. So each attempt
//! waits for a moment only; between attempts the others get their turn.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Executor, PgPool};
use tokio::time::sleep;

use crate::ledger::{blockers, describe_error, endings, is_lock_timeout, migrations, sql_state};
use crate::migration::batch::begin;
use crate::migration::coordinator::PlanError;
use crate::migration::phase::Phase;
use crate::migration::runtime::Migration;

/// How long others may have to wait behind a statement that waits for its lock.
const LOCK_TIMEOUT: &str = "set local lock_timeout = '200ms'";
/// Attempts before the driver reports what the statement waits for, and tries again later.
const ATTEMPTS: u32 = 6;
/// The first and the longest pause between attempts; a random part is added.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Before a statement that may read all rows.
pub(crate) const NO_LIMIT: &str = "set local statement_timeout = 0; ";

/// Runs a statement that changes the schema of a table, in one transaction of this phase.
pub(crate) async fn alter(
    pool: &PgPool,
    table: &str,
    migration: &Migration,
    phase: Phase,
    statement: &str,
) -> Result<(), PlanError> {
    alter_or_drop(pool, &[table], migration, phase, false, statement).await
}

/// The same for a statement that changes several tables.
pub(crate) async fn alter_all(
    pool: &PgPool,
    tables: &[&str],
    migration: &Migration,
    phase: Phase,
    statement: &str,
) -> Result<(), PlanError> {
    alter_or_drop(pool, tables, migration, phase, false, statement).await
}

/// The tables of both sides, which are one for columns.
pub(crate) fn each_of<'a>(old: &'a str, new: &'a str) -> Vec<&'a str> {
    if old == new { vec![old] } else { vec![old, new] }
}

/// Drops the old side and records in the same transaction that the migration is finished. Does nothing if that was recorded
/// before.
pub(crate) async fn drop_old_side(
    pool: &PgPool,
    tables: &[&str],
    migration: &Migration,
    statement: &str,
) -> Result<(), PlanError> {
    alter_or_drop(pool, tables, migration, Phase::Contract, true, statement).await
}

async fn alter_or_drop(
    pool: &PgPool,
    tables: &[&str],
    migration: &Migration,
    phase: Phase,
    drops_old_side: bool,
    statement: &str,
) -> Result<(), PlanError> {
    let mut backoff = BACKOFF.0;
    let table = &*tables.join(", ");
    let shown = statement.trim_start_matches(NO_LIMIT);
    for _ in 0..ATTEMPTS {
        let mut tx = begin(pool, &[phase], migration).await?;
        tx.execute(LOCK_TIMEOUT).await?;
        if drops_old_side {
            if !endings::finish(&mut tx, migration.id(), "cutover", "").await? {
                tx.rollback().await?;
                return Ok(());
            }
        } else if !migrations::lock_unless_ended(&mut tx, migration.id()).await? {
            return Err(PlanError::PhaseLeft);
        }
        match tx.execute(AssertSqlSafe(statement)).await {
            Ok(_) => return Ok(tx.commit().await?),
            Err(error) if is_lock_timeout(&error) => tx.rollback().await?,
            Err(error) => return Err(refusal(error, table, shown)),
        }
        tracing::info!(table, statement = shown, "could not acquire the lock within 200 ms; retrying");
        sleep(backoff + Duration::from_millis(fastrand::u64(0..100))).await;
        backoff = (backoff * 2).min(BACKOFF.1);
    }
    let mut tx = begin(pool, &[phase], migration).await?;
    let holders = blockers::on_tables(tables, &[], &mut tx).await?;
    tx.rollback().await?;
    Err(PlanError::NotNow(format!(
        "could not acquire the lock on table {table} within 200 ms in {ATTEMPTS} attempts; to unblock: end the \
         transactions on the table ({}); the statement is `{shown}`",
        blockers::listed(&holders)
    )))
}

/// What to do about the error.
fn refusal(error: sqlx::Error, table: &str, statement: &str) -> PlanError {
    let reason = describe_error(&error);
    match sql_state(&error).as_deref() {
        Some("42501") => PlanError::Refused(format!(
            "this role may not change {table}: {reason}; to fix: let the owner of the table run `{statement}`"
        )),
        Some(_) => PlanError::Refused(format!("`{statement}` failed: {reason}")),
        None => error.into(),
    }
}
