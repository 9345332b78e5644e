//! The expand step: the new side, the guard trigger, and the record of both sides.

use sqlx::PgConnection;

use super::description::{Description, Shape};
use super::files::waits_for_file;
use super::inspection::problems;
use super::refusal::refuse;
use super::unguarded::Gone;
use crate::ledger::{begin_work, sides, unprepared};
use crate::migration::batch::{begin, keyset};
use crate::migration::coordinator::PlanError;
use crate::migration::phase::Phase;
use crate::migration::runtime::Migration;
use crate::migration::schema::{GuardTrigger, alter, alter_all, each_of};

/// Makes the new side, once the plan has no problem.
pub(crate) async fn expand(plan: &Description, migration: &Migration) -> Result<(), PlanError> {
    // Outside of this phase nothing is tried.
    begin(&plan.outline.pool, &[Phase::Off], migration).await?.rollback().await?;
    let pool = &plan.outline.pool;
    let mut tx = begin_work(pool).await?;
    let found = problems(plan, Some(migration.id()), &mut tx).await?;
    for problem in found.iter().filter(|problem| !problem.is_blocking) {
        tracing::warn!(migration = migration.name(), %problem, "the plan has a warning");
    }
    refuse(&found)?;
    let exists = new_side_exists(plan, &mut tx).await?;
    tx.rollback().await?;
    if plan.by_files && !exists {
        let new_side = match &*plan.new_columns() {
            [] => format!("table {}", plan.new_table()),
            [column] => format!("column {column:?} of {}", plan.old_table()),
            columns => format!("columns {} of {}", columns.join(", "), plan.old_table()),
        };
        return Err(waits_for_file(&format!("the creation of {new_side}"), migration));
    }
    // The role that made the new side ran the statements that belong to it.
    let mut make: Vec<String> = match exists {
        true => Vec::new(),
        false => plan.create().into_iter().chain(plan.changes.expand.clone()).collect(),
    };
    let (old, new) = (plan.old_columns(), plan.new_columns());
    let tables = [plan.old_table(), plan.new_table()];
    let record = sides::record(&migration.id().to_string(), tables, [&old, &new], !exists);
    if let (Shape::Table { .. }, false) = (&plan.shape, exists) {
        // The trigger names the new table with its schema, which only the server knows. No write is lost in between,
        // because the copy comes later.
        make.push(record.clone());
        alter(pool, plan.new_table(), migration, Phase::Off, &make.join(";\n")).await?;
        make.clear();
        refuse(&problems(plan, Some(migration.id()), &mut *begin_work(pool).await?).await?)?;
    }
    let mut tx = begin_work(pool).await?;
    let arm = match find_guard(plan, &mut tx).await? {
        Some(guard) => Some(armed(plan, &guard, migration, &mut tx).await?),
        None => None,
    };
    tx.rollback().await?;
    // In one transaction, so that no write passes between a new column and its trigger.
    let statements: Vec<String> = make.into_iter().chain(arm).chain([record]).collect();
    let tables = each_of(plan.old_table(), plan.new_table());
    alter_all(pool, &tables, migration, Phase::Off, &statements.join(";\n")).await
}

/// Installs the trigger again if a part of it is gone, or if another build has installed another one, so that external writes are
/// mapped as this build maps rows.
pub(crate) async fn rearm(plan: &Description, migration: &Migration) -> Result<(), PlanError> {
    let mut tx = begin_work(&plan.outline.pool).await?;
    let Some(guard) = find_guard(plan, &mut tx).await? else { return Ok(()) };
    let recorded = sides::find(&mut tx, migration.id()).await?;
    if let Some(sides) = &recorded
        && guard.is_armed(&mut tx, sides.old.relation, migration.id()).await?
        && Gone::find(plan, &guard, sides, migration.id(), &mut tx).await?.is_nothing()
    {
        return Ok(());
    }
    let arm = armed(plan, &guard, migration, &mut tx).await?;
    tx.rollback().await?;
    tracing::info!(
        migration = migration.name(),
        table = plan.old_table(),
        "installing the guard trigger again, because a part of it is gone or the mapping has changed"
    );
    let tables = each_of(plan.old_table(), plan.new_table());
    alter_all(&plan.outline.pool, &tables, migration, Phase::Backfill, &arm).await
}

async fn armed(
    plan: &Description,
    guard: &GuardTrigger,
    migration: &Migration,
    connection: &mut PgConnection,
) -> Result<String, PlanError> {
    guard.armed(connection, &plan.added(), migration.id()).await?.map_err(|reason| {
        PlanError::Refused(format!(
            "the guard trigger of {} cannot compute the mapping: {reason}",
            plan.old_table()
        ))
    })
}

/// The guard trigger, if there is to be one and the old table has a key.
pub(crate) async fn find_guard(
    plan: &Description,
    connection: &mut PgConnection,
) -> Result<Option<GuardTrigger>, sqlx::Error> {
    if !plan.has_guard {
        return Ok(None);
    }
    let found = keyset::find(connection, plan.old_table(), &plan.outline.key).await?;
    Ok(found.ok().and_then(|key| plan.guard(&key.plain_names())))
}

async fn new_side_exists(plan: &Description, connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    unprepared::query_scalar(
        "select to_regclass($1) is not null and (select count(*) = cardinality($2) from pg_attribute \
             where attrelid = to_regclass($1) and not attisdropped and attname = any ($2))",
    )
    .bind(plan.new_table())
    .bind(plan.new_columns())
    .fetch_one(connection)
    .await
}
