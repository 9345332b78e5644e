//! What computes something from the old side by itself, such as a view or a policy.
//!
//! From `retire` on the old side has no values of new rows. A generated column would be null then, a policy would hide the rows, and
//! a trigger that is limited to the old columns would not fire.

use sqlx::PgConnection;

use super::description::Description;
use crate::migration::catalog::{PlanProblem, quote};

/// Each as a problem, unless the plan waives it or names it in a statement of `contract`.
pub(super) async fn readers(
    plan: &Description,
    connection: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let mut problems = Vec::new();
    // The other rows stay.
    if plan.part().is_some_and(|part| !part.keeps_rows) {
        return Ok(problems);
    }
    for reader in plan.old_side().readers(connection).await? {
        let is_removed = plan.changes.contract.iter().any(|statement| names(statement, &reader.name));
        if is_removed || plan.changes.waived.contains(&reader.name) {
            continue;
        }
        problems.push(PlanProblem::blocking(
            format!("{} reads the old side, which is not written from `retire` on", reader.what),
            format!(
                "make one that reads the new side, or none, in its place (`{}`); or use `.without({:?})`",
                reader.drop, reader.name
            ),
        ));
    }
    Ok(problems)
}

/// Whether a statement names an object.
fn names(statement: &str, name: &str) -> bool {
    let mut words = statement.split(|c: char| !c.is_alphanumeric() && c != '_');
    statement.contains(&quote(name)) || words.any(|word| word.eq_ignore_ascii_case(name))
}

/// The same before `expand`, which does not wait for them.
pub(super) async fn readers_so_far(
    plan: &Description,
    connection: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let found = readers(plan, connection).await?;
    Ok(found.into_iter().map(|problem| PlanProblem { is_blocking: false, ..problem }).collect())
}
