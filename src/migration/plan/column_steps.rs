//! What a column migration does to the schema, and the checks before it.

use sqlx::{AssertSqlSafe, Executor, PgConnection, Row};

use super::column::ColumnMigration;
use crate::ledger::unprepared;
use crate::migration::batch::{Keyset, MappingCode, Scope, begin, keyset};
use crate::migration::coordinator::PlanError;
use crate::migration::phase::Phase;
use crate::migration::runtime::Migration;
use crate::migration::schema::{alter, drop_old_side, guard};

/// Adds the new column.
pub(crate) async fn expand(plan: &ColumnMigration, migration: &Migration) -> Result<(), PlanError> {
    let mut tx = begin(&plan.outline.pool, &[Phase::Off], migration).await?;
    inspect(plan, &mut tx).await?;
    if let MappingCode::Sql(expressions) = &plan.outline.sides.forward.code {
        // Fails unless they can be computed.
        let explain =
            format!("explain select {} from {} where false", expressions.join(", "), plan.sql.table);
        tx.execute(AssertSqlSafe(explain)).await?;
    }
    let is_there: bool = unprepared::query_scalar(
        "select exists (select from pg_attribute \
             where attrelid = to_regclass($1) and attname = $2 and not attisdropped)",
    )
    .bind(&plan.sql.table)
    .bind(&plan.names.new)
    .fetch_one(&mut *tx)
    .await?;
    tx.rollback().await?;
    // Who made the column ran what goes with it.
    let own = if is_there { Vec::new() } else { plan.changes.expand.clone() };
    // In one statement: from when there is a new side, nobody writes past it.
    let trap = plan.trap.iter().map(|trap| trap.arm(migration));
    let statements: Vec<String> = std::iter::once(plan.sql.expand()).chain(trap).chain(own).collect();
    alter(&plan.outline.pool, &plan.sql.table, migration, Phase::Off, &statements.join(";\n")).await
}

/// Drops the old column, unless something depends on it.
pub(crate) async fn contract(plan: &ColumnMigration, migration: &Migration) -> Result<(), PlanError> {
    let mut tx = begin(&plan.outline.pool, &[Phase::Contract], migration).await?;
    let dependents = dependents(plan, &mut tx).await?;
    let is_null_free: bool = unprepared::query_scalar(
        "select coalesce((select attnotnull from pg_attribute where attrelid = to_regclass($1) and attname = $2), false)",
    )
    .bind(&plan.sql.table)
    .bind(&plan.names.new)
    .fetch_one(&mut *tx)
    .await?;
    tx.rollback().await?;
    // Statements of the user's own may see to what depends on it; if they don't, the server refuses the drop.
    if !dependents.is_empty() && plan.changes.contract.is_empty() {
        return Err(PlanError::Refused(format!(
            "column {} of {} can't be dropped while these depend on it: {}",
            plan.sql.old,
            plan.sql.table,
            dependents.join(", ")
        )));
    }
    if plan.not_null && !is_null_free {
        forbid_nulls(plan, migration).await?;
    }
    let trap = plan.trap.iter().map(|_| guard::disarm(&plan.sql.table, &plan.sql.new, migration));
    let statements: Vec<String> =
        trap.chain(plan.changes.contract.clone()).chain([plan.sql.contract()]).collect();
    drop_old_side(&plan.outline.pool, &plan.sql.table, migration, &statements.join(";\n")).await
}

/// Makes the new column `NOT NULL`, if there is no null in it: with the check in place nobody could change such a row.
async fn forbid_nulls(plan: &ColumnMigration, migration: &Migration) -> Result<(), PlanError> {
    let (pool, table, new) = (&plan.outline.pool, &plan.sql.table, &plan.sql.new);
    let mut tx = begin(pool, &[Phase::Contract], migration).await?;
    tx.execute("set local statement_timeout = 0").await?;
    let look = format!("select exists (select from {table} where {new} is null)");
    let has_null: bool = unprepared::query_scalar(AssertSqlSafe(look)).fetch_one(&mut *tx).await?;
    tx.rollback().await?;
    if has_null {
        return Err(PlanError::Refused(format!(
            "column {new} of {table} can't become NOT NULL while it is null in some row: give these a value"
        )));
    }
    let check = plan.sql.check(&plan.names);
    for statement in plan.sql.not_null(&plan.names) {
        if let Err(error) = alter(pool, table, migration, Phase::Contract, &statement).await {
            let undo = format!("alter table {table} drop constraint if exists {check}");
            alter(pool, table, migration, Phase::Contract, &undo).await?;
            return Err(error);
        }
    }
    Ok(())
}

/// Looks at the table before work on its rows begins.
pub(crate) async fn check<'a>(
    plan: &'a ColumnMigration,
    migration: &Migration,
) -> Result<Scope<'a>, PlanError> {
    let mut tx = migration.begin(&plan.outline.pool).await?;
    let key = inspect(plan, &mut tx).await?;
    let scope = Scope::load(&mut tx, &plan.outline.sides, key).await?;
    tx.rollback().await?;
    Ok(scope)
}

/// Whether the table is as a column migration needs it; every problem at once.
async fn inspect(plan: &ColumnMigration, tx: &mut PgConnection) -> Result<Keyset, PlanError> {
    let row = unprepared::query(
        "select t.oid is not null as table_there, format_type(o.atttypid, o.atttypmod) as old_type, \
                coalesce(o.attnotnull and not o.atthasdef, false) as old_required \
         from (select to_regclass($1) as oid) as t \
         left join pg_attribute o on o.attrelid = t.oid and o.attname = $2 and not o.attisdropped",
    )
    .bind(&plan.sql.table)
    .bind(&plan.names.old)
    .fetch_one(&mut *tx)
    .await?;
    let (table, old) = (&plan.sql.table, &plan.sql.old);
    if !row.try_get("table_there")? {
        return Err(PlanError::Refused(format!(
            "table {table} does not exist, or is not on the search_path"
        )));
    }
    let (key, mut problems) = match keyset::find(tx, table, &plan.outline.key).await? {
        Ok(key) => (Some(key), Vec::new()),
        Err(problems) => (None, problems),
    };
    if row.try_get("old_required")? {
        problems.push(format!(
            "column {old} is NOT NULL without a default, so nothing could be inserted from `retire` on: run \
             `alter table {table} alter column {old} drop not null` first"
        ));
    }
    let old_type: Option<String> = row.try_get("old_type")?;
    if old_type.is_none() {
        problems.push(format!("column {old} does not exist"));
    }
    for name in generated(plan, tx).await? {
        problems.push(format!(
            "`forward` uses the generated column {name}, which has no value yet when the trap looks at what a stranger \
             writes: write its expression instead, or go `without_guard_trigger`"
        ));
    }
    match (key, old_type) {
        (Some(key), Some(_)) if problems.is_empty() => Ok(key),
        _ => Err(PlanError::Refused(format!("{table}: {}", problems.join("; ")))),
    }
}

/// Generated columns that a trap's expressions mention.
async fn generated(plan: &ColumnMigration, tx: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    let (Some(_), MappingCode::Sql(expressions)) = (&plan.trap, &plan.outline.sides.forward.code) else {
        return Ok(Vec::new());
    };
    let names: Vec<String> = unprepared::query_scalar(
        "select attname::text from pg_attribute \
         where attrelid = to_regclass($1) and attgenerated <> '' and not attisdropped",
    )
    .bind(&plan.sql.table)
    .fetch_all(tx)
    .await?;
    let is_apart = |c: char| !(c.is_alphanumeric() || c == '_');
    let mentions = |name: &String| {
        expressions.iter().flat_map(|text| text.split(is_apart)).any(|word| word.eq_ignore_ascii_case(name))
    };
    Ok(names.into_iter().filter(mentions).collect())
}

/// What would stand in the way of the drop, or would go with it unasked.
async fn dependents(plan: &ColumnMigration, tx: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    Ok(plan.old().dependents(tx).await?.unwrap_or_default())
}
