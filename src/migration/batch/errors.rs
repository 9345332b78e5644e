//! What an error of row work means for the batch: retry it, look for the row that causes it, or stop.

use sqlx::PgPool;

use crate::ledger::{begin_work, blockers, is_lock_timeout, literal, sql_state, unprepared};
use crate::migration::coordinator::PlanError;
use crate::migration::runtime::Error;

/// Classes of SQLSTATE that say nothing about a row: connection, authorization, transaction state, cancellation,
/// shutdown, resources, and the fence's own refusals.
const NOT_ABOUT_A_ROW: [&str; 15] =
    ["08", "25", "26", "28", "2D", "3B", "3D", "3F", "40", "42", "53", "57", "58", "72", "ZC"];
/// A lock timeout, and an unsafe new enum value.
const NOT_ABOUT_A_ROW_CODES: [&str; 2] = ["55P03", "55P04"];

/// Whether the same batch may succeed a little later.
pub(crate) fn is_transient(error: &Error) -> bool {
    error.is_retryable() || matches!(error, Error::Database(error) if is_lock_timeout(error))
}

/// Whether a single row may cause the error. Any error of the server counts that is not known to have another cause: an
/// expression can fail with every class, for example 54000 for a text that is too large for `to_tsvector`.
pub(crate) fn may_concern_a_row(error: &sqlx::Error) -> bool {
    sql_state(error).is_some_and(|state| {
        !NOT_ABOUT_A_ROW.iter().any(|class| state.starts_with(class))
            && !NOT_ABOUT_A_ROW_CODES.contains(&&*state)
    })
}

/// The server function that refuses a statement whose result row-level security would change. The message itself may be
/// in any language.
const ROW_SECURITY_CHECK: &str = "check_enable_rls";

/// Replaces the server's refusal to run a statement under row-level security by an error that names table and role and
/// says what to do. Other errors stay as they are.
pub(crate) async fn explain_row_security(pool: &PgPool, tables: &[&str], error: PlanError) -> PlanError {
    let is_row_security = |error: &sqlx::Error| {
        error
            .as_database_error()
            .and_then(|error| error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>())
            .is_some_and(|error| error.code() == "42501" && error.routine() == Some(ROW_SECURITY_CHECK))
    };
    if !matches!(&error, PlanError::Operation(Error::Database(error)) if is_row_security(error)) {
        return error;
    }
    let tables: Vec<String> = tables.iter().map(ToString::to_string).collect();
    let active = format!(
        "select quote_ident(current_user), name from unnest({}) as wanted (name) \
         where to_regclass(name) is not null and row_security_active(to_regclass(name)::oid)",
        literal::texts(&tables)
    );
    let active: Result<Vec<(String, String)>, _> = unprepared::ask(pool, active).await;
    let Ok(active) = active else { return error };
    let Some((role, _)) = active.first() else { return error };
    let names: Vec<&str> = active.iter().map(|(_, name)| &**name).collect();
    PlanError::Refused(format!(
        "row-level security on {names} can hide rows from role {role}, so a copy or comparison could miss them. Run \
         `alter role {role} bypassrls`, or make {role} the owner and run `alter table … no force row level security`",
        names = names.join(" and ")
    ))
}

/// Replaces a lock timeout of work on rows by an error that names the transactions that lock rows of the tables. Other
/// errors stay as they are.
pub(crate) async fn explain_row_lock(pool: &PgPool, tables: &[&str], error: PlanError) -> PlanError {
    match holders_after_timeout(pool, tables, &["RowShareLock", "RowExclusiveLock"], &error).await {
        Some(holders) => PlanError::NotNow(format!(
            "rows of {} to be unlocked; to unblock: end the transactions that lock rows: {holders}",
            tables.join(" and ")
        )),
        None => error,
    }
}

/// The same for the outcome of a look at a table.
pub(crate) async fn explain_table_lock(
    pool: &PgPool,
    table: &str,
    outcome: Result<(), PlanError>,
) -> Result<(), PlanError> {
    let Err(error) = outcome else { return Ok(()) };
    match holders_after_timeout(pool, &[table], &[], &error).await {
        Some(holders) => Err(PlanError::NotNow(format!(
            "a look at {table} waited for a lock for too long; to unblock: end the transactions on the table ({holders})"
        ))),
        None => Err(error),
    }
}

/// The transactions that hold locks of these modes (empty: any) on the tables, if the error is a lock timeout.
async fn holders_after_timeout(
    pool: &PgPool,
    tables: &[&str],
    modes: &[&str],
    error: &PlanError,
) -> Option<String> {
    if !matches!(error, PlanError::Operation(Error::Database(error)) if is_lock_timeout(error)) {
        return None;
    }
    let mut tx = begin_work(pool).await.ok()?;
    let holders = blockers::on_tables(tables, modes, &mut tx).await.ok()?;
    tx.rollback().await.ok()?;
    Some(blockers::listed(&holders))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_connection_does_not_concern_a_row() {
        assert!(!may_concern_a_row(&sqlx::Error::PoolTimedOut));
        assert!(!may_concern_a_row(&sqlx::Error::WorkerCrashed));
    }
}
