//! The contract step: the old side is dropped, by the oid and column number that `expand` recorded.

use sqlx::{AssertSqlSafe, Executor};

use super::before_work::{Found, before_work};
use super::description::{Description, Shape, not_null_check, not_null_steps};
use super::files::waits_for_file;
use crate::ledger::{begin_work, guard_triggers, sides, unprepared};
use crate::migration::batch::{begin, walk};
use crate::migration::catalog::{OldSide, take_over_sequences, unquote};
use crate::migration::coordinator::PlanError;
use crate::migration::phase::Phase;
use crate::migration::runtime::Migration;
use crate::migration::schema::{alter, alter_all, drop_old_side, each_of};

/// Drops the old side, unless something depends on it or it is gone.
pub(crate) async fn contract(plan: &Description, migration: &Migration) -> Result<(), PlanError> {
    let mut tx = begin(&plan.outline.pool, &[Phase::Contract], migration).await?;
    let Some(sides) = sides::find(&mut tx, migration.id()).await? else {
        return Err(PlanError::Refused(format!(
            "the ledger does not say which table {} was in `expand`, so nothing is dropped; to fix: drop the old side by \
             hand",
            plan.old_table()
        )));
    };
    let new_table = sides.new.table.as_deref().unwrap_or(plan.new_table());
    let (true, Some(table)) = (sides.old.is_there, sides.old.table) else {
        let is_left = plan.has_guard && guard_triggers::is_left(&mut tx, migration.id()).await?;
        tx.rollback().await?;
        return if is_left { remove_rest(plan, new_table, migration).await } else { Ok(()) };
    };
    if plan.moves_some_rows() {
        tx.rollback().await?;
        return remove_rows(plan, [&table, new_table], migration).await;
    }
    let columns = sides.old.columns;
    let old =
        OldSide { table: table.clone(), columns: columns.iter().map(|column| unquote(column)).collect() };
    let dependents = old.dependents(&mut tx).await?.unwrap_or_default();
    let sequences = match (&*columns, &sides.new.table) {
        ([], Some(new)) => take_over_sequences(&mut tx, &table, new).await?,
        _ => Vec::new(),
    };
    tx.rollback().await?;
    // Statements of the user may drop what depends on it; if they do not, the server refuses the drop.
    if !dependents.is_empty() && plan.changes.contract.is_empty() {
        return Err(PlanError::Refused(format!(
            "{} cannot be dropped because other objects depend on it: {}; to fix: drop them, or add \
             `.contract_sql(\"drop …\")` for each",
            match &*columns {
                [] => format!("table {table}"),
                [column] => format!("column {column} of {table}"),
                several => format!("columns {} of {table}", several.join(", ")),
            },
            dependents.join(", ")
        )));
    }
    if let Shape::Columns { not_null: true, .. } = &plan.shape {
        for column in &sides.new.columns {
            forbid_nulls(plan, &table, column, migration).await?;
        }
    }
    if plan.by_files {
        return disarm(plan, &table, migration).await;
    }
    let id = migration.id().to_string();
    let disarm = plan.has_guard.then(|| guard_triggers::disarm(&table, &id));
    let statements: Vec<String> = disarm
        .into_iter()
        .chain(plan.changes.contract.clone())
        .chain(sequences)
        .chain([plan.drop(&table, &columns)])
        .collect();
    drop_old_side(&plan.outline.pool, &each_of(&table, new_table), migration, &statements.join(";\n")).await
}

/// Removes the triggers that are left on the new table when others have dropped the old side. They do nothing any more, so the
/// migration ends even if this role may not remove them.
async fn remove_rest(plan: &Description, table: &str, migration: &Migration) -> Result<(), PlanError> {
    let statement = guard_triggers::disarm_rest(&migration.id().to_string());
    match alter(&plan.outline.pool, table, migration, Phase::Contract, &statement).await {
        Err(PlanError::Refused(reason)) => {
            tracing::warn!(
                migration = migration.name(),
                table,
                reason,
                "a trigger of the migration was not removed"
            );
            Ok(())
        }
        outcome => outcome,
    }
}

/// Deletes the moved rows from the old table, and then ends the migration.
async fn remove_rows(
    plan: &Description,
    [table, new_table]: [&str; 2],
    migration: &Migration,
) -> Result<(), PlanError> {
    let mut tx = begin(&plan.outline.pool, &[Phase::Contract], migration).await?;
    let referring: Vec<String> = unprepared::query_scalar(
        "select format('`alter table %s drop constraint %I`', conrelid::regclass, conname) from pg_constraint \
         where contype = 'f' and confrelid = to_regclass($1) and conparentid = 0 and confdeltype not in ('a', 'r') \
         order by conrelid::regclass::text, conname",
    )
    .bind(table)
    .fetch_all(&mut *tx)
    .await?;
    tx.rollback().await?;
    if !referring.is_empty() {
        return Err(PlanError::Refused(format!(
            "the moved rows are not deleted from {table}, because foreign keys would change or delete rows that refer to \
             them; to fix: {}",
            referring.join(", ")
        )));
    }
    let Found { key, old_types, new_types } = before_work(plan, migration).await?;
    let scope = plan.scope(key, old_types, new_types);
    let old = (plan.old_table(), &scope.key);
    let removed = walk(
        &plan.outline,
        "the delete of rows that have moved",
        old,
        &[Phase::Contract],
        |span| scope.remove(span),
        migration,
    )
    .await?;
    tracing::info!(
        migration = migration.name(),
        table,
        removed,
        "moved rows were deleted from the old table"
    );
    let disarm = plan.has_guard.then(|| guard_triggers::disarm(table, &migration.id().to_string()));
    let statements: Vec<String> = disarm.into_iter().chain(plan.changes.contract.clone()).collect();
    drop_old_side(&plan.outline.pool, &each_of(table, new_table), migration, &statements.join(";\n")).await
}

/// Removes the guard trigger, and then waits for a migration file to drop the old side.
async fn disarm(plan: &Description, table: &str, migration: &Migration) -> Result<(), PlanError> {
    let mut tx = begin_work(&plan.outline.pool).await?;
    let is_left = plan.has_guard && guard_triggers::is_left(&mut tx, migration.id()).await?;
    tx.rollback().await?;
    if is_left {
        let statement = guard_triggers::disarm(table, &migration.id().to_string());
        let tables = each_of(table, plan.new_table());
        alter_all(&plan.outline.pool, &tables, migration, Phase::Contract, &statement).await?;
    }
    Err(waits_for_file(&format!("the drop of the old side of {table}"), migration))
}

/// Makes the new column `NOT NULL`, if no row holds a null. With the check in place no writer could change such a row.
async fn forbid_nulls(
    plan: &Description,
    table: &str,
    column: &str,
    migration: &Migration,
) -> Result<(), PlanError> {
    let pool = &plan.outline.pool;
    let mut tx = begin(pool, &[Phase::Contract], migration).await?;
    let is_not_null: bool = unprepared::query_scalar(
        "select coalesce((select attnotnull from pg_attribute where attrelid = to_regclass($1) and attname = $2), false)",
    )
    .bind(table)
    .bind(unquote(column))
    .fetch_one(&mut *tx)
    .await?;
    if is_not_null {
        tx.rollback().await?;
        return Ok(());
    }
    tx.execute("set local statement_timeout = 0").await?;
    let look = format!("select exists (select from {table} where {column} is null)");
    let has_null: bool = unprepared::query_scalar(AssertSqlSafe(look)).fetch_one(&mut *tx).await?;
    tx.rollback().await?;
    if has_null {
        return Err(PlanError::Refused(format!(
            "column {column} of {table} cannot become NOT NULL while some row holds a null; to fix: give these rows a \
             value (`update {table} set {column} = … where {column} is null`)"
        )));
    }
    let id = migration.id().to_string();
    for statement in not_null_steps(table, column, &id) {
        if let Err(error) = alter(pool, table, migration, Phase::Contract, &statement).await {
            let undo = format!("alter table {table} drop constraint if exists {}", not_null_check(&id));
            alter(pool, table, migration, Phase::Contract, &undo).await?;
            return Err(error);
        }
    }
    Ok(())
}
