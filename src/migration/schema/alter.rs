//! Changes of the schema under load, and the checks before them.
//!
//! `ALTER TABLE` waits for every transaction on the table, and everybody else waits behind it. So it waits only
//! for a moment, goes away, and comes back.

use std::time::Duration;

use sqlx::postgres::PgDatabaseError;
use sqlx::{AssertSqlSafe, Executor, PgConnection, PgPool};
use tokio::time::sleep;

use super::guard::GuardTrigger;
use crate::ledger::{is_lock_timeout, migrations, sql_state, unprepared};
use crate::migration::batch::begin;
use crate::migration::coordinator::PlanError;
use crate::migration::phase::Phase;
use crate::migration::runtime::Migration;

/// How long others may have to wait behind a statement that waits for its lock.
const LOCK_TIMEOUT: &str = "set local lock_timeout = '200ms'";
/// How often it comes back before it is given back to the driver, which says what it waits for and tries again.
const ATTEMPTS: u32 = 6;
/// Between attempts: from, to; a random part is added.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Arms the trap anew where another build has armed another one: what strangers write is copied as this build copies it.
pub(crate) async fn rearm(
    pool: &PgPool,
    table: &str,
    trap: &GuardTrigger,
    migration: &Migration,
) -> Result<(), PlanError> {
    let mut tx = begin(pool, &[Phase::Backfill], migration).await?;
    let is_armed = trap.is_armed(&mut tx, Some(migration)).await?;
    tx.rollback().await?;
    if is_armed {
        return Ok(());
    }
    tracing::info!(migration = migration.name(), table, "the trap is armed anew: the mapping is another one");
    alter(pool, table, migration, Phase::Backfill, &trap.arm(migration)).await
}

/// Runs a statement that changes the schema of a table.
pub(crate) async fn alter(
    pool: &PgPool,
    table: &str,
    migration: &Migration,
    phase: Phase,
    statement: &str,
) -> Result<(), PlanError> {
    alter_after(pool, table, migration, phase, None, statement).await
}

/// Drops the old side and records in the same transaction that the migration is finished, so that the drop happens once.
pub(crate) async fn drop_old_side(
    pool: &PgPool,
    table: &str,
    migration: &Migration,
    statement: &str,
) -> Result<(), PlanError> {
    let finish = migrations::finish_statement(migration.id());
    alter_after(pool, table, migration, Phase::Contract, Some(finish), statement).await
}

async fn alter_after(
    pool: &PgPool,
    table: &str,
    migration: &Migration,
    phase: Phase,
    first: Option<String>,
    statement: &str,
) -> Result<(), PlanError> {
    let mut backoff = BACKOFF.0;
    for _ in 0..ATTEMPTS {
        let mut tx = begin(pool, &[phase], migration).await?;
        tx.execute(LOCK_TIMEOUT).await?;
        if let Some(first) = &first {
            tx.execute(AssertSqlSafe(&**first)).await?;
        }
        match tx.execute(AssertSqlSafe(statement)).await {
            Ok(_) => return Ok(tx.commit().await?),
            Err(error) if is_lock_timeout(&error) => tx.rollback().await?,
            Err(error) => return Err(refusal(error, table, statement)),
        }
        tracing::info!(statement, "the lock was not to be had in 200 ms; trying again");
        sleep(backoff + Duration::from_millis(fastrand::u64(0..100))).await;
        backoff = (backoff * 2).min(BACKOFF.1);
    }
    let mut tx = begin(pool, &[phase], migration).await?;
    let holders = locked_by(table, None, &mut tx).await?;
    tx.rollback().await?;
    Err(PlanError::NotNow(format!(
        "`{statement}` did not get its lock within 200 ms in {ATTEMPTS} attempts; transactions on the table: {}",
        if holders.is_empty() { "none any more".to_owned() } else { holders.join(", ") }
    )))
}

/// What somebody has to do about the error, where that can be said.
fn refusal(error: sqlx::Error, table: &str, statement: &str) -> PlanError {
    let detail =
        error.as_database_error().and_then(|error| error.try_downcast_ref::<PgDatabaseError>()?.detail());
    match sql_state(&error).as_deref() {
        Some("42501") => PlanError::Refused(format!(
            "this role may not change {table} ({error}): let its owner run `{statement}`"
        )),
        Some("23514") => PlanError::Refused(format!("`{statement}` failed: {error}")),
        Some("2BP01") => PlanError::Refused(format!("{error}: {}", detail.unwrap_or_default())),
        _ => error.into(),
    }
}

/// Whose transactions hold a lock on the table, of this mode or any, the oldest first.
pub(crate) async fn locked_by(
    table: &str,
    mode: Option<&str>,
    connection: &mut PgConnection,
) -> Result<Vec<String>, sqlx::Error> {
    unprepared::query_scalar(
        "select format('pid %s (%s) for %s s', a.pid, coalesce(nullif(a.application_name, ''), 'unnamed'), \
                extract(epoch from clock_timestamp() - a.xact_start)::bigint) \
         from pg_locks l join pg_stat_activity a on a.pid = l.pid \
         where l.relation = to_regclass($1) and l.granted and ($2::text is null or l.mode = $2) \
           and l.database = (select oid from pg_database where datname = current_database()) \
         group by a.pid, a.application_name, a.xact_start order by a.xact_start limit 5",
    )
    .bind(table)
    .bind(mode)
    .fetch_all(connection)
    .await
}
