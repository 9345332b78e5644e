//! Whether the server can read the statements of the user. Those of `contract` run when there is no way back.

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use super::description::Description;
use crate::ledger::{describe_error, sql_state};
use crate::migration::catalog::PlanProblem;

/// Each statement that has a syntax error. It is compiled as part of a block that ends before it.
pub(super) async fn of_statements(
    plan: &Description,
    tx: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let mut problems = Vec::new();
    for (field, statements) in
        [("expand_sql", &plan.changes.expand), ("contract_sql", &plan.changes.contract)]
    {
        for statement in statements {
            if let Some(error) = syntax_error(statement, tx).await? {
                problems.push(PlanProblem::warning(
                    format!("the server cannot read `{statement}`: {}", describe_error(&error)),
                    format!("correct it in `.{field}(…)`"),
                ));
            }
        }
    }
    Ok(problems)
}

async fn syntax_error(statement: &str, tx: &mut PgConnection) -> Result<Option<sqlx::Error>, sqlx::Error> {
    let block = format!("do $cutover_syntax$ begin return;\n{statement};\nend $cutover_syntax$");
    let mut attempt = tx.begin().await?;
    let outcome = attempt.execute(AssertSqlSafe(block)).await;
    attempt.rollback().await?;
    match outcome {
        Err(error) if sql_state(&error).as_deref() == Some("42601") => Ok(Some(error)),
        Ok(_) | Err(sqlx::Error::Database(_)) => Ok(None),
        Err(error) => Err(error),
    }
}
