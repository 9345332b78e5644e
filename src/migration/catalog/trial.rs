//! What only a trial shows: whether an insert may leave the old columns out.

use sqlx::postgres::PgDatabaseError;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use super::names::quote;
use super::problem::PlanProblem;
use super::table::TableFacts;
use crate::ledger::describe_error;

/// A duplicate of a key: every other check has passed by then.
const DUPLICATES: [&str; 2] = ["23505", "23P01"];

/// Inserts a copy of some row without these columns, as the service will from `retire` on. Rolled back in any case.
///
/// A refusal counts only if the same insert with the columns is not refused in the same way. In an empty table nothing
/// can be tried, and no problem is reported.
pub(crate) async fn insert_without(
    connection: &mut PgConnection,
    table: &str,
    facts: &TableFacts,
    columns: &[String],
) -> Result<Option<PlanProblem>, sqlx::Error> {
    let Some(without) = refusal(connection, table, facts, columns).await? else { return Ok(None) };
    let with = refusal(connection, table, facts, &[]).await?;
    if with.as_ref().and_then(identity) == identity(&without) {
        return Ok(None);
    }
    let names: Vec<String> = columns.iter().map(|column| quote(column)).collect();
    let (column, reason) = (names.join(", "), describe_error(&without));
    Ok(Some(PlanProblem::blocking(
        format!(
            "an insert into {table} without column {column} fails, as every insert would from `retire` on: {reason}"
        ),
        remedy(&without, table, &column),
    )))
}

async fn refusal(
    connection: &mut PgConnection,
    table: &str,
    facts: &TableFacts,
    left_out: &[String],
) -> Result<Option<sqlx::Error>, sqlx::Error> {
    let columns: Vec<String> = facts
        .columns
        .iter()
        .filter(|column| !column.is_generated && !left_out.contains(&column.name))
        .map(|column| quote(&column.name))
        .collect();
    let columns = columns.join(", ");
    let insert = format!(
        "insert into {table} ({columns}) overriding system value select {columns} from {table} limit 1"
    );
    let mut tx = connection.begin().await?;
    let outcome = tx.execute(AssertSqlSafe(insert)).await;
    tx.rollback().await?;
    match outcome {
        Err(sqlx::Error::Database(error))
            if error.code().is_some_and(|code| DUPLICATES.contains(&&*code)) =>
        {
            Ok(None)
        }
        Err(error @ sqlx::Error::Database(_)) => Ok(Some(error)),
        Err(error) => Err(error),
        Ok(_) => Ok(None),
    }
}

fn of_postgres(error: &sqlx::Error) -> Option<&PgDatabaseError> {
    error.as_database_error()?.try_downcast_ref()
}

/// What makes two refusals the same.
fn identity(error: &sqlx::Error) -> Option<(&str, Option<&str>, Option<&str>, &str)> {
    let error = of_postgres(error)?;
    // The message of a violated constraint may hold values of the row.
    let message = if error.constraint().or(error.column()).is_some() { "" } else { error.message() };
    Some((error.code(), error.constraint(), error.column(), message))
}

fn remedy(error: &sqlx::Error, table: &str, column: &str) -> String {
    let other = || format!("change what refuses it, so that an insert may leave column {column} out");
    let Some(error) = of_postgres(error) else { return other() };
    match (error.code(), error.data_type(), error.constraint()) {
        ("23502", Some(domain), _) => format!("`alter domain {domain} drop not null`"),
        ("23514", Some(domain), Some(name)) => {
            format!("`alter domain {domain} drop constraint {}`", quote(name))
        }
        ("23502", None, _) => format!("`alter table {table} alter column {column} drop not null`"),
        ("23514", None, Some(name)) => format!("`alter table {table} drop constraint {}`", quote(name)),
        _ => other(),
    }
}
