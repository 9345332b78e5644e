//! Looks at all rows of the table for those that violate a constraint of the change.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};

use super::addition::{Addition, MANY};
use super::description::Description;
use super::found::Table;
use crate::ledger::{describe_error, is_refusal, sql_state, unprepared};
use crate::migration::batch::keyset;
use crate::migration::catalog::{PlanProblem, ROW_WORK_SETTINGS};

/// The rows that violate a constraint, as problems. `limit`: how long a check may take; `None`: no limit.
///
/// The settings of the checks are undone.
pub(super) async fn violations(
    plan: &Description,
    table: &Table,
    limit: Option<Duration>,
    connection: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let key = match keyset::find(&mut *connection, &table.name, &[]).await? {
        Ok(key) => format!("array_to_string({}, ', ')", key.as_text(&table.name)),
        Err(_) => format!("{}.ctid::text", table.name),
    };
    let mut problems = Vec::new();
    for addition in &plan.additions {
        let mut tx = connection.begin().await?;
        let limit = limit.map_or(0, |limit| limit.as_millis());
        let settings = format!("{}set local statement_timeout = {limit}", *ROW_WORK_SETTINGS);
        tx.execute(AssertSqlSafe(settings)).await?;
        let query = addition.violations(&table.name, &key);
        let found = unprepared::query(AssertSqlSafe(query)).fetch_one(&mut *tx).await;
        tx.rollback().await?;
        match found {
            Ok(row) => {
                let (count, keys): (i64, Vec<String>) = (row.try_get(0)?, row.try_get(1)?);
                if count > 0 {
                    problems.push(violated(addition, table, count, &keys));
                }
            }
            Err(error) if sql_state(&error).as_deref() == Some("57014") && limit > 0 => {
                problems.push(PlanProblem::warning(
                    format!(
                        "it is not known whether rows of {} violate {}, because a look at all of them takes longer than \
                         {limit} ms",
                        table.name,
                        addition.text()
                    ),
                    "wait: before `expand`, the driver looks at all rows without a limit",
                ));
            }
            Err(error) if is_refusal(&error) => problems.push(PlanProblem::blocking(
                format!(
                    "{} of {} cannot be checked: {}",
                    addition.text(),
                    table.name,
                    describe_error(&error)
                ),
                "correct the plan, or what the server refuses",
            )),
            Err(error) => return Err(error),
        }
    }
    Ok(problems)
}

fn violated(addition: &Addition, table: &Table, count: i64, keys: &[String]) -> PlanProblem {
    let many = if count >= MANY { " or more" } else { "" };
    let (keys, name) = (keys.join("; "), &table.name);
    let are = |one: &str, several: &str| match count {
        1 => format!("1 {one}"),
        _ => format!("{count}{many} {several}"),
    };
    match addition {
        Addition::NotNull { column } => {
            let rows = are(&format!("row of {name} holds"), &format!("rows of {name} hold"));
            PlanProblem::blocking(
                format!("{rows} a null in column {column:?}: {keys}"),
                format!("`update {name} set \"{column}\" = … where \"{column}\" is null`"),
            )
        }
        Addition::Unique { .. } => {
            let values = are("value occurs", "values occur");
            PlanProblem::blocking(
                format!("{values} in more than one row of {name}, against {}: {keys}", addition.text()),
                "change or delete the duplicates",
            )
        }
        Addition::Check { .. } | Addition::ForeignKey(_) => {
            let rows = are(&format!("row of {name} violates"), &format!("rows of {name} violate"));
            PlanProblem::blocking(
                format!("{rows} {}: {keys}", addition.text()),
                "correct or delete these rows",
            )
        }
    }
}
