//! What stands against a wider key: everything else that names the column.

use sqlx::PgConnection;

use super::builder::Description;
use super::found::find;
use super::named_by::{claimed, named_by};
use super::referring;
use crate::ledger::sides;
use crate::migration::catalog::{PlanProblem, TableFacts, quote};

/// Everything at once. Also asked before the exchange, because an object that names the key may have been added since.
pub(super) async fn problems(
    plan: &Description,
    migration: Option<i32>,
    connection: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let (table, column) = (&plan.table, quote(&plan.column));
    let Some(facts) = TableFacts::read(&mut *connection, table).await? else {
        return Ok(vec![PlanProblem::blocking(
            format!("table {table} does not exist, or is not on the search_path"),
            "create it, or name it with its schema",
        )]);
    };
    let Some(key) = find(plan, migration, &mut *connection).await? else {
        return Ok(vec![PlanProblem::blocking(
            format!("column {column} of {table} does not exist"),
            "name the column of the primary key",
        )]);
    };
    let mut problems = Vec::new();
    if facts.kind != "r" || !facts.children.is_empty() || !facts.parents.is_empty() {
        problems.push(PlanProblem::blocking(
            format!("{table} is partitioned, a partition, or part of an inheritance tree"),
            "move it with a TableMigration to a table whose key is `bigint`",
        ));
    }
    if !facts.is_owner {
        problems.push(PlanProblem::blocking(
            format!("role {} may not change {table}, because it is not the owner", facts.role),
            format!(
                "`grant <owner of {table}> to {}`, or let the owner's role run the migration",
                facts.role
            ),
        ));
    }
    if key.constraint.is_none() {
        problems.push(PlanProblem::blocking(
            format!("column {column} of {table} is not the primary key by itself"),
            "name the column of a primary key of one column; for others use a TableMigration",
        ));
    }
    if !["integer", "smallint", "bigint"].contains(&&*key.key_type) {
        problems.push(PlanProblem::blocking(
            format!("column {column} of {table} has type {}, and not `integer`", key.key_type),
            "use a TableMigration",
        ));
    }
    let is_recorded = sides::find(&mut *connection, migration).await?.is_some();
    for (name, exists) in [(&plan.wide, key.has_wide), (&plan.narrow, key.has_narrow)] {
        if exists && !is_recorded {
            problems.push(PlanProblem::blocking(
                format!("column {} of {table} exists, and the migration needs the name", quote(name)),
                format!("`alter table {table} rename column {} to …`", quote(name)),
            ));
        }
    }
    for other in sides::other_users(connection, migration, table, Some(&plan.column)).await? {
        problems.push(claimed(other, table, &plan.column));
    }
    let named = named_by(&plan.table, &plan.column, key.relation, connection).await?;
    problems.extend(named.into_iter().map(|(_, problem)| problem));
    let referring = referring::find(plan, &key, migration, connection).await?;
    problems.extend(referring::problems(plan, &referring, (migration, is_recorded), connection).await?);
    Ok(problems)
}
