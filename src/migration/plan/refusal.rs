use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::ledger::{describe_error, is_refusal, sql_state, unprepared};
use crate::migration::batch::MappingCode;
use crate::migration::catalog::{PlanProblem, Resolved, resolve};
use crate::migration::coordinator::PlanError;

/// Why a plan cannot do its work, as one refusal.
pub(crate) fn refuse(problems: &[PlanProblem]) -> Result<(), PlanError> {
    let blocking: Vec<String> =
        problems.iter().filter(|problem| problem.is_blocking).map(ToString::to_string).collect();
    if blocking.is_empty() { Ok(()) } else { Err(PlanError::Refused(blocking.join(". "))) }
}

/// Runs statements and takes them back. Returns the server's error, if it has one.
pub(super) async fn try_and_undo(
    statements: &str,
    tx: &mut PgConnection,
) -> Result<Option<sqlx::Error>, sqlx::Error> {
    let mut attempt = tx.begin().await?;
    let outcome = attempt.execute(AssertSqlSafe(statements)).await;
    attempt.rollback().await?;
    match outcome {
        Ok(_) => Ok(None),
        Err(error @ sqlx::Error::Database(_)) => Ok(Some(error)),
        Err(error) => Err(error),
    }
}

/// The server cannot compute something that the plan describes.
pub(super) fn not_computed(what: &str, error: &sqlx::Error) -> PlanProblem {
    let remedy = match sql_state(error).as_deref() {
        Some("54011") => {
            "move its rows to a table with fewer columns (`TableMigration`); columns that were dropped count, too"
        }
        _ => "correct it in the plan",
    };
    PlanProblem::blocking(format!("the {what} cannot be used: {}", describe_error(error)), remedy)
}

/// The role may not create temporary tables, on which mappings and indexes are tried.
pub(super) async fn no_temporary_tables(tx: &mut PgConnection) -> Result<Option<PlanProblem>, sqlx::Error> {
    let lacks: Option<(String, String)> = unprepared::query_as(
        "select quote_ident(current_database()), quote_ident(current_user) \
         where not has_database_privilege(current_database(), 'TEMPORARY')",
    )
    .fetch_optional(tx)
    .await?;
    Ok(lacks.map(|(database, role)| {
        PlanProblem::blocking(
            format!("role {role} may not create temporary tables in database {database}, on which mappings are tried"),
            format!("`grant temporary on database {database} to {role}`"),
        )
    }))
}

/// Problems of a mapping over the rows of `table`.
pub(super) async fn of_mapping(
    field: &str,
    table: &str,
    added: &[(String, String)],
    how: &MappingCode,
    is_guarded: bool,
    tx: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let MappingCode::Sql(expressions) = how else { return Ok(Vec::new()) };
    let Resolved { unstable, generated, .. } = match resolve(tx, table, added, expressions).await {
        Ok(resolved) => resolved,
        Err(error) if is_refusal(&error) => {
            let shown = expressions.join(", ");
            return Ok(vec![not_computed(&format!("mapping `{field}` (`{shown}`)"), &error)]);
        }
        Err(error) => return Err(error),
    };
    let mut problems: Vec<PlanProblem> = unstable
        .into_iter()
        .map(|(function, remedy)| {
            PlanProblem::blocking(
                format!("mapping `{field}` calls {function}, whose result changes while the row does not"),
                remedy,
            )
        })
        .collect();
    if is_guarded {
        problems.extend(generated.into_iter().map(|column| {
            PlanProblem::blocking(
                format!(
                    "mapping `{field}` uses the generated column {column}, which has no value yet when the guard \
                     trigger sees an external write"
                ),
                "write the column's expression instead, or use `.without_guard_trigger()`",
            )
        }));
    }
    Ok(problems)
}

pub(super) async fn missing(table: &str, tx: &mut PgConnection) -> Result<PlanProblem, sqlx::Error> {
    let path: String =
        unprepared::query_scalar("select current_setting('search_path')").fetch_one(tx).await?;
    Ok(PlanProblem::blocking(
        format!("table {table} does not exist, or is not on the search_path ({path})"),
        "create it, or name it with its schema",
    ))
}
