//! Whether the server can read the statements of the user. Those of `contract` run when there is no way back.

use sqlx::PgConnection;

use super::description::Description;
use super::refusal::try_and_undo;
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
    let error = try_and_undo(&block, tx).await?;
    Ok(error.filter(|error| sql_state(error).as_deref() == Some("42601")))
}
