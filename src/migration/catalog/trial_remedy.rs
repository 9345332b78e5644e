//! What to do about a write that the server refused in a trial. Pure.

use sqlx::postgres::PgDatabaseError;

use super::names::quote;
use super::table::{TableFacts, Trigger};

pub(super) fn of_postgres(error: &sqlx::Error) -> Option<&PgDatabaseError> {
    error.as_database_error()?.try_downcast_ref()
}

/// The table's triggers whose functions were running when the server refused a write.
pub(super) fn triggers_of<'a>(error: &sqlx::Error, facts: &'a TableFacts) -> Vec<&'a Trigger> {
    let context = of_postgres(error).and_then(|error| error.r#where()).unwrap_or_default();
    let runs = |trigger: &&Trigger| context.contains(&format!("function {} ", trigger.function));
    facts.triggers.iter().filter(runs).collect()
}

/// `table` and `column` are quoted.
pub(super) fn remedy(error: &sqlx::Error, table: &str, column: &str, triggers: &[&Trigger]) -> String {
    let other = || format!("change what refuses it, so that a write may leave column {column} out");
    let Some(error) = of_postgres(error) else { return other() };
    match (error.code(), error.data_type(), error.constraint()) {
        _ if !triggers.is_empty() => {
            let each = |trigger: &&Trigger| {
                let (name, table) = (quote(&trigger.name), &trigger.table);
                format!(
                    "change function {}, or `alter table {table} disable trigger {name}`",
                    trigger.function
                )
            };
            triggers.iter().map(each).collect::<Vec<_>>().join("; ")
        }
        ("23502", Some(domain), _) => format!("`alter domain {domain} drop not null`"),
        ("23514", Some(domain), Some(name)) => {
            format!("`alter domain {domain} drop constraint {}`", quote(name))
        }
        ("23502", None, _) => {
            let column = error.column().map_or_else(|| column.to_owned(), quote);
            format!("`alter table {table} alter column {column} drop not null`")
        }
        ("23514" | "23503", None, Some(name)) => {
            format!("`alter table {table} drop constraint {}`", quote(name))
        }
        _ => other(),
    }
}
