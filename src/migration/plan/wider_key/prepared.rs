//! What the columns of foreign keys get before the exchange, so that the exchange itself looks at no row.

use sqlx::PgPool;

use super::builder::{Description, prefix};
use super::carried::carried;
use super::found::Key;
use super::referring::{Referring, find};
use crate::ledger::unprepared;
use crate::migration::batch::begin;
use crate::migration::catalog::{Attachments, actions, beside, fit_name, quote, rename_columns};
use crate::migration::coordinator::PlanError;
use crate::migration::phase::Phase;
use crate::migration::plan::description::{not_null_check, not_null_steps};
use crate::migration::runtime::Migration;
use crate::migration::schema::{Index, alter, ensure_indexes, run_unfenced};

/// A foreign key whose second column has everything that the column has.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) found: Referring,
    /// Whether it is the first one of its column.
    moves_column: bool,
    /// Indexes of the column, each with its counterpart.
    indexes: Vec<(String, String)>,
    /// The statements that restore what does not follow the names.
    pub(super) carried: Vec<String>,
}

/// Builds indexes on the second columns, makes them `NOT NULL`, and adds the foreign keys between them. Nothing of this
/// blocks a writer for longer than a moment.
pub(super) async fn prepare(
    plan: &Description,
    key: &Key,
    migration: &Migration,
) -> Result<Vec<Prepared>, PlanError> {
    let (pool, id) = (&plan.outline.pool, migration.id().to_string());
    let mut tx = begin(pool, &[Phase::Switch], migration).await?;
    let found = find(plan, key, Some(migration.id()), &mut tx).await?;
    tx.rollback().await?;
    let mut prepared: Vec<Prepared> = Vec::new();
    for one in found {
        let is_known = prepared
            .iter()
            .any(|known| (&known.found.table, &known.found.column) == (&one.table, &one.column));
        let indexes = match one.moves() && !is_known {
            true => prepare_column(plan, key, &one, &id, migration).await?,
            false => Vec::new(),
        };
        prepare_key(pool, (key, key.second(plan)), &one, &id, migration).await?;
        let carried = match is_known {
            true => Vec::new(),
            false => {
                let mut tx = begin(pool, &[Phase::Switch], migration).await?;
                let statements = carried(one.relation, &one.column, &mut tx).await?;
                tx.rollback().await?;
                statements
            }
        };
        prepared.push(Prepared { found: one, moves_column: !is_known, indexes, carried });
    }
    Ok(prepared)
}

async fn prepare_column(
    plan: &Description,
    key: &Key,
    one: &Referring,
    id: &str,
    migration: &Migration,
) -> Result<Vec<(String, String)>, PlanError> {
    let (pool, table, second) = (&plan.outline.pool, &one.table, one.second(key.is_exchanged()));
    let mut tx = begin(pool, &[Phase::Switch], migration).await?;
    let attachments = Attachments::read(&mut tx, table).await?;
    tx.rollback().await?;
    let indexes = attachments.map(|attached| attached.indexes).unwrap_or_default();
    let mut pairs = Vec::new();
    for index in indexes.into_iter().filter(|index| index.is_valid && index.refers_to.contains(&one.column)) {
        if index.is_replica_identity {
            return Err(PlanError::Refused(format!(
                "index {} is the replica identity of {table}; to fix: `alter table {table} replica identity default`",
                quote(&index.name)
            )));
        }
        let on = index.definition.split_once(" USING ").map_or("", |(_, on)| on);
        let on = rename_columns(on, |column| (*column == one.column).then(|| quote(&second)));
        let counterpart = fit_name(format!("cutover_{id}_{}", index.name));
        let build = Index::new(&counterpart, index.is_unique, &format!("using {on}"));
        ensure_indexes(pool, table, &[build], migration).await?;
        pairs.push((index.name, counterpart));
    }
    if one.not_null {
        for statement in not_null_steps(table, &quote(&second), id) {
            if let Err(error) = alter(pool, table, migration, Phase::Switch, &statement).await {
                let undo = format!("alter table {table} drop constraint if exists {}", not_null_check(id));
                alter(pool, table, migration, Phase::Switch, &undo).await?;
                return Err(error);
            }
        }
    }
    Ok(pairs)
}

async fn prepare_key(
    pool: &PgPool,
    (key, second_key): (&Key, &str),
    one: &Referring,
    id: &str,
    migration: &Migration,
) -> Result<(), PlanError> {
    let (table, name) = (&one.table, one.prepared(id));
    let mut tx = begin(pool, &[Phase::Switch], migration).await?;
    let found: Option<bool> = unprepared::query_scalar(
        "select convalidated from pg_constraint where conrelid = $1::oid and conname = $2 and contype = 'f'",
    )
    .bind(one.relation)
    .bind(&name)
    .fetch_optional(&mut *tx)
    .await?;
    tx.rollback().await?;
    if found.is_none() {
        let second = one.second(key.is_exchanged());
        let add = format!(
            "alter table {table} add constraint {} foreign key ({}) references {} ({}){} not valid",
            quote(&name),
            quote(&second),
            key.table,
            quote(second_key),
            rename_columns(actions(&one.definition), |column| (*column == one.column)
                .then(|| quote(&second)))
        );
        alter(pool, table, migration, Phase::Switch, &add).await?;
    }
    if one.is_valid && found != Some(true) {
        let validate = format!("alter table {table} validate constraint {}", quote(&name));
        run_unfenced(pool, &validate, migration).await?;
    }
    Ok(())
}

/// Drops the foreign keys between second columns, when the exchange that they were made for is not wanted any more.
pub(super) async fn unprepare(
    pool: &PgPool,
    key: &Key,
    id: &str,
    migration: &Migration,
) -> Result<(), PlanError> {
    if !key.is_prepared {
        return Ok(());
    }
    let mut tx = begin(pool, &[Phase::Switch], migration).await?;
    let drops: Vec<(String, String)> = unprepared::query_as(
        "select format('%I.%I', n.nspname, c.relname), format('%I', k.conname) from pg_constraint k \
         join pg_class c on c.oid = k.conrelid join pg_namespace n on n.oid = c.relnamespace \
         where k.contype = 'f' and k.confrelid = $1::oid and starts_with(k.conname, $2)",
    )
    .bind(key.relation)
    .bind(prefix(id))
    .fetch_all(&mut *tx)
    .await?;
    tx.rollback().await?;
    for (table, name) in drops {
        let drop = format!("alter table {table} drop constraint if exists {name}");
        alter(pool, &table, migration, Phase::Switch, &drop).await?;
    }
    Ok(())
}

impl Prepared {
    pub(super) fn drop_key(&self) -> String {
        format!("alter table {} drop constraint {}", self.found.table, quote(&self.found.constraint))
    }

    /// The statements that put the second column in the place of the column. `is_exchanged`: before they run.
    pub(super) fn exchange(&self, is_exchanged: bool, id: &str) -> Vec<String> {
        let one = &self.found;
        let alter = format!("alter table {}", one.table);
        let mut statements = Vec::new();
        // Two foreign keys of one column: the first one has moved it.
        if one.moves() && self.moves_column {
            let column = quote(&one.column);
            let (second, aside) = (quote(&one.second(is_exchanged)), quote(&one.second(!is_exchanged)));
            if one.default.is_some() {
                statements.push(format!("{alter} alter column {column} drop default"));
            }
            statements.push(format!("{alter} rename column {column} to {aside}"));
            statements.push(format!("{alter} rename column {second} to {column}"));
            statements.push(format!("{alter} alter column {aside} drop not null"));
            if let Some(default) = &one.default {
                statements.push(format!("{alter} alter column {column} set default {default}"));
            }
            for (index, counterpart) in &self.indexes {
                let rename = |from: &str, to: &str| {
                    format!("alter index {} rename to {}", beside(&one.table, from), quote(to))
                };
                let aside = format!("cutover_{id}_aside");
                statements.extend([
                    rename(index, &aside),
                    rename(counterpart, index),
                    rename(&aside, counterpart),
                ]);
            }
        }
        let (prepared, constraint) = (quote(&one.prepared(id)), quote(&one.constraint));
        statements.push(format!("{alter} rename constraint {prepared} to {constraint}"));
        statements
    }
}
