//! What logical replication makes of a plan.
//!
//! # The hazard
//!
//! A subscription writes a table like any external writer, but it stops at the first write that is refused, and from then on its
//! publisher keeps its log for it. A publication refuses updates of a table without a replica identity, and its subscribers stop
//! at a column that they do not have.

use sqlx::PgConnection;

use super::description::Description;
use crate::migration::batch::MappingCode;
use crate::migration::catalog::{
    PlanProblem, publications_of_all_columns, quote, subscriptions, unidentified,
};
use crate::migration::phase::Phase;

/// What is found before `expand`. `is_new`: the plan makes the new table.
pub(super) async fn of_replication(
    plan: &Description,
    is_new: bool,
    connection: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let mut problems = identities(plan, is_new, &mut *connection).await?;
    for problem in refused_subscriptions(plan, &mut *connection).await? {
        problems.push(PlanProblem { is_blocking: false, ..problem });
    }
    if plan.moves_columns() {
        let adds: Vec<String> =
            plan.added().iter().map(|(name, sql_type)| format!("add column {name} {sql_type}")).collect();
        let table = plan.old_table();
        for publication in publications_of_all_columns(connection, table).await? {
            if plan.changes.waived.contains(&publication) {
                continue;
            }
            let publication = quote(&publication);
            problems.push(PlanProblem::warning(
                format!(
                    "publication {publication} has all columns of {table}, and a subscription to it stops at the first row after \
                     `expand` if its table lacks the new one"
                ),
                format!("in the database of each subscription, `alter table {table} {}`", adds.join(", ")),
            ));
        }
    }
    Ok(problems)
}

/// What holds the next move forward from this phase.
pub(super) async fn before_move(
    plan: &Description,
    phase: Phase,
    connection: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let mut problems = identities(plan, false, &mut *connection).await?;
    // With a mapping in Rust, external writes are refused from `ramp` on.
    let is_mapped = matches!(plan.outline.sides.forward.code, MappingCode::Sql(_));
    if phase == Phase::Switch || phase >= Phase::Verify && !is_mapped {
        problems.extend(refused_subscriptions(plan, connection).await?);
    }
    Ok(problems)
}

async fn identities(
    plan: &Description,
    is_new: bool,
    connection: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let mut problems = unidentified(&mut *connection, plan.old_table(), false).await?;
    if !plan.moves_columns() {
        problems.extend(unidentified(connection, plan.new_table(), is_new).await?);
    }
    Ok(problems)
}

/// Subscriptions whose writes the guard trigger refuses sooner or later.
async fn refused_subscriptions(
    plan: &Description,
    connection: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let table = plan.old_table();
    let found = subscriptions(connection, table).await?;
    let counted = found.into_iter().filter(|name| !plan.changes.waived.contains(name));
    let effect = match plan.has_guard {
        true => "stops when it writes the old side from `retire` on",
        false => "writes the old side only",
    };
    let problem = |name: String| {
        let quoted = quote(&name);
        PlanProblem::blocking(
            format!("subscription {quoted} writes {table}, and {effect}"),
            format!(
                "take the table out of the publication, and then `alter subscription {quoted} refresh publication`; or, if the \
                 publication leaves the old side out, use `.without({name:?})`"
            ),
        )
    };
    Ok(counted.map(problem).collect())
}
