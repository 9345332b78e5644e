//! The end of a change: what has no way back.

use super::description::{Description, Removal};
use super::enforce::found;
use super::inspection::all_dependents;
use crate::ledger::{guard_triggers, sides, write_watch};
use crate::migration::batch::begin;
use crate::migration::catalog::{OldSide, unquote};
use crate::migration::coordinator::PlanError;
use crate::migration::phase::Phase;
use crate::migration::plan::files::waits_for_file;
use crate::migration::runtime::Migration;
use crate::migration::schema::{alter, drop_index, drop_old_side};

/// Completes the constraints, drops what is to be dropped, by the oid and column number that `expand` recorded, and ends
/// the migration.
pub(super) async fn contract(plan: &Description, migration: &Migration) -> Result<(), PlanError> {
    let mut tx = begin(&plan.pool, &[Phase::Contract], migration).await?;
    let Some(recorded) = sides::find(&mut tx, migration.id()).await? else {
        return Err(PlanError::Refused(format!(
            "the ledger does not say which table {} was in `expand`, so nothing is changed; to fix: make the change by \
             hand",
            plan.table
        )));
    };
    let old = recorded.old;
    if plan.removal == Some(Removal::Table) && !old.is_there {
        tx.rollback().await?;
        return Ok(());
    }
    let table = found(plan, migration, &mut tx).await?;
    let built = plan.built(&mut tx, &table, migration.id()).await?;
    let dropped = old.table.clone().filter(|_| old.is_there && plan.removal.is_some());
    if let Some(dropped) = &dropped {
        let column = old.columns.first();
        let columns = old.columns.iter().map(|column| unquote(column)).collect();
        let old_side = OldSide { table: dropped.clone(), columns };
        let dependents = all_dependents(&old_side, &mut tx).await?;
        if !dependents.is_empty() {
            return Err(PlanError::Refused(format!(
                "{} cannot be dropped because other objects depend on it: {}; to fix: drop them",
                column.map_or_else(|| dropped.clone(), |column| format!("column {column} of {dropped}")),
                dependents.join(", ")
            )));
        }
    }
    let is_watched = write_watch::is_left(&mut tx, migration.id()).await?;
    tx.rollback().await?;
    let id = migration.id().to_string();
    for (number, (addition, built)) in plan.additions.iter().zip(built).enumerate() {
        if built.is_complete(addition, table.is_partitioned) {
            continue;
        }
        let name = addition.name(&id, number);
        for statement in addition.complete(&table.name, &name, table.is_partitioned) {
            alter(&plan.pool, &table.name, migration, Phase::Contract, &statement).await?;
        }
    }
    if let (Some(Removal::Index(_)), Some(index)) = (&plan.removal, &dropped) {
        drop_index(&plan.pool, &table.name, index, Phase::Contract, migration).await?;
    }
    if let (true, Some(dropped)) = (plan.by_files, &dropped) {
        if is_watched {
            let disarm = guard_triggers::disarm(&table.name, &id);
            alter(&plan.pool, &table.name, migration, Phase::Contract, &disarm).await?;
        }
        let what = match old.columns.first() {
            Some(column) => format!("column {column} of {dropped}"),
            None => format!("table {dropped}"),
        };
        return Err(waits_for_file(&format!("the drop of {what}"), migration));
    }
    // The triggers name the column that is dropped.
    let statements: Vec<String> = [guard_triggers::disarm(&table.name, &id)]
        .into_iter()
        .chain(dropped.and_then(|dropped| plan.drop(&dropped, old.columns.first().map(String::as_str))))
        .collect();
    drop_old_side(&plan.pool, &[&table.name], migration, &statements.join(";\n")).await
}
