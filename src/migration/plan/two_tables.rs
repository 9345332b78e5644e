//! Problems of a plan that moves rows to another table.

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use super::description::Description;
use super::key_remedy::unusable_key;
use super::partial::{of_part, of_partitions};
use super::readers::readers_so_far;
use super::refusal::{missing, not_computed, of_mapping};
use super::replication::of_replication;
use super::rights::attached_problems;
use super::round_trip::try_mappings;
use crate::ledger::{sql_state, unprepared};
use crate::migration::batch::{Keyset, keyset};
use crate::migration::catalog::{
    ForeignKey, PlanProblem, TableFacts, heirs, new_table_problems, outdated_order, rules,
    table_privilege_problems, unquote,
};

pub(super) async fn of_tables(
    plan: &Description,
    old: &TableFacts,
    key: Option<&Keyset>,
    may_use_new: bool,
    tx: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let sides = &plan.outline.sides;
    let mut problems = Vec::new();
    let moving = plan.old_columns();
    let moves = |name: &String| moving.is_empty() || moving.contains(name);
    for key in old.foreign_keys.iter().filter(|key| key.has_action && key.columns.iter().any(moves)) {
        problems.push(PlanProblem::warning(
            format!(
                "constraint {:?} of {} ({}) changes rows of the old table only, when the referenced row changes",
                key.name, sides.old, key.definition
            ),
            format!("give {} the same constraint: `alter table {} add {} not valid`", sides.new, sides.new, key.definition),
        ));
    }
    problems.extend(columns_there(&sides.old, &sides.backward.columns, old));
    problems.extend(of_mapping("column", &sides.old, &[], &sides.forward.code, plan.has_guard, tx).await?);
    problems.extend(of_part(plan, old, key, tx).await?);
    let mut found = TableFacts::read(tx, &sides.new).await?;
    let is_made_by_plan = found.is_none();
    if let (None, Some(create)) = (&found, plan.create()) {
        problems.extend(try_create(&create, tx).await?);
        make_partitions(plan, tx).await?;
        found = TableFacts::read(tx, &sides.new).await?;
        if found.is_none() {
            return Ok(problems);
        }
    }
    let Some(new) = found else {
        problems.push(missing(&sides.new, tx).await?);
        return Ok(problems);
    };
    let lacks = table_privilege_problems([&sides.old, &sides.new], old, &new);
    if !lacks.is_empty() {
        problems.extend(lacks);
        return Ok(problems);
    }
    if plan.has_guard && !new.is_owner {
        problems.push(PlanProblem::warning(
            format!(
                "role {} does not own {}, so no trigger on it can compare, at commit, a row that another transaction changes \
                 between the two statements of a write",
                new.role, sides.new
            ),
            format!("before `expand`, `grant {} to {}`", new.owner, new.role),
        ));
    }
    let has_rows: bool =
        unprepared::query_scalar(AssertSqlSafe(format!("select exists (select from {})", sides.new)))
            .fetch_one(&mut *tx)
            .await?;
    let of_partitions = of_partitions(plan, &new, key, tx).await?;
    let has_key = of_partitions.is_empty();
    problems.extend(of_partitions);
    problems.extend(rules(&sides.new, &new, &["INSERT", "UPDATE", "DELETE"]));
    problems.extend(new_table_problems(&sides.new, &new, has_rows && !may_use_new, is_made_by_plan));
    problems.extend(heirs(&sides.new, &new));
    if let (true, Some(key)) = (plan.part().is_some_and(|part| part.keeps_rows), key) {
        problems.extend(stays_behind([&sides.old, &sides.new], old, &new, &key.names()));
    }
    problems.extend(columns_there(&sides.new, &sides.forward.columns, &new));
    problems.extend(of_mapping("column_back", &sides.new, &[], &sides.backward.code, false, tx).await?);
    if let (true, Some(key)) = (has_key, key) {
        let names = key.plain_names();
        match keyset::find(tx, &sides.new, &names).await? {
            Ok(_) => problems.extend(outdated_order(tx, &sides.new, &names).await?),
            Err(reasons) => problems.push(unusable_key(tx, &sides.new, &names, &reasons).await?),
        }
    }
    problems.extend(of_replication(plan, is_made_by_plan, tx).await?);
    problems.extend(readers_so_far(plan, tx).await?);
    let attached = attached_problems(plan, &mut problems, tx).await?;
    let is_refused = problems.iter().any(|problem| problem.is_blocking);
    if let (false, Some(key)) = (is_refused, key) {
        problems.extend(try_mappings(plan, old, Some(&new), (key, &attached), tx).await?);
    }
    Ok(problems)
}

/// When the guard trigger is gone, only a foreign key removes the row of a table of its own with the row that it belongs to.
fn stays_behind(tables: [&str; 2], old: &TableFacts, new: &TableFacts, key: &str) -> Option<PlanProblem> {
    let follows =
        |key: &&ForeignKey| key.referenced == old.relation && key.definition.contains("ON DELETE CASCADE");
    if new.foreign_keys.iter().any(|key| follows(&key)) {
        return None;
    }
    let [old, new] = tables;
    Some(PlanProblem::warning(
        format!(
            "no foreign key deletes a row of {new} together with its row of {old}, so after `contract` a writer that deletes only \
             that leaves it behind"
        ),
        format!(
            "`alter table {new} add foreign key ({key}) references {old} ({key}) on delete cascade on update cascade not valid`, \
             in `.create(…)` or before `contract`; then validate it"
        ),
    ))
}

/// Creates the new table, in the transaction that is rolled back, so that everything about it is known before `expand`.
async fn try_create(create: &str, tx: &mut PgConnection) -> Result<Option<PlanProblem>, sqlx::Error> {
    let mut trial = tx.begin().await?;
    match trial.execute(AssertSqlSafe(create)).await {
        Ok(_) => trial.commit().await.map(|()| None),
        Err(error @ sqlx::Error::Database(_)) => {
            trial.rollback().await?;
            // Another role may run it, another instance may be running it, or a lock was not granted at once.
            let may_work = ["42501", "42P07", "23505", "55P03"];
            if sql_state(&error).is_some_and(|state| may_work.contains(&&*state)) {
                return Ok(None);
            }
            Ok(Some(not_computed(&format!("statement `{create}`"), &error)))
        }
        Err(error) => Err(error),
    }
}

/// Makes the partitions of the new table that the plan describes, in the transaction that is rolled back. Other statements
/// could hold locks on tables in use. Whether the statements work is seen in `expand`.
async fn make_partitions(plan: &Description, tx: &mut PgConnection) -> Result<(), sqlx::Error> {
    let is_partition = |statement: &&String| statement.to_lowercase().contains("partition of");
    for statement in plan.changes.expand.iter().filter(is_partition) {
        let mut attempt = tx.begin().await?;
        match attempt.execute(AssertSqlSafe(statement.clone())).await {
            Ok(_) => attempt.commit().await?,
            Err(sqlx::Error::Database(_)) => attempt.rollback().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn columns_there(table: &str, columns: &[String], facts: &TableFacts) -> Vec<PlanProblem> {
    let missing = columns.iter().filter(|column| facts.column(&unquote(column)).is_none());
    missing
        .map(|column| {
            PlanProblem::blocking(
                format!("{table}: column {column} does not exist"),
                format!("`alter table {table} add column {column} …`, or name another column"),
            )
        })
        .collect()
}
