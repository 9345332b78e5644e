//! The exchange of the key and its second column, in either direction.

use sqlx::{AssertSqlSafe, Executor};

use super::builder::Description;
use super::carried::carried;
use super::found::{Key, find};
use super::inspection::problems;
use super::prepared::{Prepared, prepare, unprepare};
use super::referring::{Referring, mirrored, relations_of};
use super::trigger_functions::{self, TriggerFunction};
use super::unguarded::{before_exchange, refuse_differences};
use crate::ledger::literal::text as literal;
use crate::ledger::{begin_work, key_mirror, unprepared};
use crate::migration::batch::begin;
use crate::migration::catalog::quote;
use crate::migration::coordinator::PlanError;
use crate::migration::phase::Phase;
use crate::migration::plan::description::{not_null_check, not_null_steps};
use crate::migration::plan::refusal::refuse;
use crate::migration::runtime::Migration;
use crate::migration::schema::{Index, alter, alter_all, ensure_indexes};

/// Makes the second column the key.
pub(super) async fn exchange(
    plan: &Description,
    is_forward: bool,
    migration: &Migration,
) -> Result<(), PlanError> {
    let pool = &plan.outline.pool;
    let mut tx = begin(pool, &[Phase::Switch], migration).await?;
    let found = find(plan, Some(migration.id()), &mut tx).await?;
    let mut against =
        if is_forward { problems(plan, Some(migration.id()), &mut tx).await? } else { Vec::new() };
    let key = found.ok_or_else(|| PlanError::Refused(format!("column {:?} is gone", plan.column)))?;
    let carried = carried(key.relation, &plan.column, &mut tx).await?;
    let is_exchanged = key.is_exchanged() == is_forward;
    if !is_exchanged {
        against.extend(before_exchange(plan, migration.id(), &mut tx).await?);
    }
    tx.rollback().await?;
    let id = migration.id().to_string();
    if is_exchanged {
        return unprepare(pool, &key, &id, migration).await;
    }
    refuse(&against)?;
    let (table, second) = (&key.table, key.second(plan));
    if !is_forward {
        refuse_large_keys(plan, &key).await?;
    }
    let index = index_name(&id, is_forward);
    let build = Index::new(&index, true, &key.index_on(plan, second));
    ensure_indexes(pool, table, &[build], migration).await?;
    for statement in not_null_steps(table, &quote(second), &id) {
        if let Err(error) = alter(pool, table, migration, Phase::Switch, &statement).await {
            let undo = format!("alter table {table} drop constraint if exists {}", not_null_check(&id));
            alter(pool, table, migration, Phase::Switch, &undo).await?;
            return Err(error);
        }
    }
    let referring = prepare(plan, &key, migration).await?;
    let mut statements = statements(plan, &key, &referring, &id, &index)?;
    statements.extend(carried);
    statements.extend(referring.iter().flat_map(|one| one.carried.clone()));
    let found: Vec<Referring> = referring.iter().map(|one| one.found.clone()).collect();
    refuse_differences(plan, &key, &found).await?;
    let mut tx = begin(pool, &[Phase::Switch], migration).await?;
    let functions = trigger_functions::find(&relations_of(&key, &found), &mut tx).await?;
    tx.rollback().await?;
    statements.extend(functions.iter().map(TriggerFunction::recompile));
    let statements = statements.join(";\n");
    alter_all(pool, &tables_of(table, &referring), migration, Phase::Switch, &statements).await?;
    tracing::info!(
        migration = migration.name(),
        table,
        is_forward,
        "the primary key and its second column were exchanged"
    );
    Ok(())
}

/// The index through which the second column becomes the primary key.
pub(super) fn index_name(id: &str, is_forward: bool) -> String {
    format!("cutover_{id}_key_{}", if is_forward { "bigint" } else { "old" })
}

/// The old type cannot hold every key any more.
async fn refuse_large_keys(plan: &Description, key: &Key) -> Result<(), PlanError> {
    let mut tx = begin_work(&plan.outline.pool).await?;
    tx.execute("set local statement_timeout = 0").await?;
    let (column, narrow) = (quote(&plan.column), quote(&plan.narrow));
    let query = format!(
        "select count(*), coalesce(max({column}), 0)::bigint from (select {column} from {} where {narrow} is null \
         limit 1000) as large",
        key.table
    );
    let found: Result<(i64, i64), _> = unprepared::query_as(AssertSqlSafe(query)).fetch_one(&mut *tx).await;
    tx.rollback().await?;
    match found? {
        (0, _) => Ok(()),
        (count, largest) => Err(PlanError::Refused(format!(
            "{count} keys of {}, up to {largest}, are too large for column {narrow}, so the key cannot become `integer` \
             again; to unblock: go on to `retire`, or delete these rows",
            key.table
        ))),
    }
}

/// The tables that the exchange changes, the key's own first.
fn tables_of<'a>(table: &'a str, referring: &'a [Prepared]) -> Vec<&'a str> {
    let mut tables = vec![table];
    tables.extend(referring.iter().map(|one| &*one.found.table).filter(|other| *other != table));
    tables.dedup();
    tables
}

/// The statements that lock all these tables. The first ones are locked while the others are waited for, so the waits together
/// are as long as one.
pub(super) fn lock(tables: &[&str]) -> Vec<String> {
    vec![
        format!("set local lock_timeout = '{}ms'", 200 / tables.len().max(1)),
        format!("lock table {} in access exclusive mode", tables.join(", ")),
    ]
}

/// The statements of the exchange, for one transaction. All of them are short.
pub(super) fn statements(
    plan: &Description,
    key: &Key,
    referring: &[Prepared],
    id: &str,
    index: &str,
) -> Result<Vec<String>, PlanError> {
    let (table, column) = (&key.table, quote(&plan.column));
    let Some(constraint) = &key.constraint else {
        return Err(PlanError::Refused(format!(
            "column {column} of {table} is not the primary key any more; to fix: `alter table {table} add primary key \
             ({column})`"
        )));
    };
    let (second, aside) = match key.is_exchanged() {
        false => (&plan.wide, &plan.narrow),
        true => (&plan.narrow, &plan.wide),
    };
    let (second, aside) = (quote(second), quote(aside));
    let mut statements = lock(&tables_of(table, referring));
    statements.extend(referring.iter().map(Prepared::drop_key));
    let is_identity = !key.identity.is_empty();
    if let (true, Some(sequence)) = (is_identity, &key.sequence) {
        // The identity's sequence goes with the identity. No session draws from it while the lock is held.
        statements.push(format!(
            "select set_config('cutover.key_last', last_value::text, true), \
             set_config('cutover.key_called', is_called::text, true) from {sequence}"
        ));
        statements.push(format!("alter table {table} alter column {column} drop identity"));
    } else if key.default.is_some() {
        statements.push(format!("alter table {table} alter column {column} drop default"));
    }
    statements.extend([
        format!("alter table {table} drop constraint {}", quote(constraint)),
        format!("alter table {table} rename column {column} to {aside}"),
        format!("alter table {table} rename column {second} to {column}"),
        format!(
            "alter table {table} add constraint {} primary key using index {}",
            quote(constraint),
            quote(index)
        ),
        format!("alter table {table} alter column {aside} drop not null"),
    ]);
    match (is_identity, &key.sequence, &key.default) {
        (true, Some(sequence), _) => {
            let always = if key.identity == "a" { "always" } else { "by default" };
            let options = key.counting.options(sequence, &key.key_type, &key.second_type);
            statements.push(format!(
                "alter table {table} alter column {column} add generated {always} as identity ({options})"
            ));
            statements.push(format!(
                "select setval(pg_get_serial_sequence({}, {}), current_setting('cutover.key_last')::bigint, \
                 current_setting('cutover.key_called')::boolean)",
                literal(table),
                literal(&plan.column)
            ));
        }
        (_, sequence, default) => {
            if let Some(sequence) = sequence {
                statements.push(format!(
                    "alter sequence {sequence} as {} owned by {table}.{column}",
                    key.second_type
                ));
            }
            if let Some(default) = default {
                statements.push(format!("alter table {table} alter column {column} set default {default}"));
            }
        }
    }
    for one in referring {
        statements.extend(one.exchange(key.is_exchanged(), id));
    }
    let found: Vec<Referring> = referring.iter().map(|one| one.found.clone()).collect();
    statements
        .push(key_mirror::install(id, &mirrored(plan, (table, &key.key_type), &found, !key.is_exchanged())));
    Ok(statements)
}
