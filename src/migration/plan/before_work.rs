//! What work on rows needs to know of the tables, and why it cannot begin.

use sqlx::PgConnection;

use super::description::Description;
use super::refusal::{missing, refuse};
use crate::ledger::sides::{self, SideRows};
use crate::ledger::unprepared;
use crate::migration::batch::{ColumnType, Keyset, keyset};
use crate::migration::catalog::{PlanProblem, beside, outdated_order, quote, split_table, unquote};
use crate::migration::coordinator::PlanError;
use crate::migration::runtime::Migration;

/// What work on rows needs to know.
pub(crate) struct Found {
    pub(crate) key: Keyset,
    pub(crate) old_types: Vec<ColumnType>,
    pub(crate) new_types: Vec<ColumnType>,
}

/// Inspects the tables before work on their rows begins.
pub(crate) async fn before_work(plan: &Description, migration: &Migration) -> Result<Found, PlanError> {
    let mut tx = migration.begin_work(&plan.outline.pool).await?;
    let found = inspect(plan, migration.id(), &mut tx).await?;
    tx.rollback().await?;
    Ok(found)
}

/// Tables of the sides that have another name or schema than in the plan since `expand`, so that another table may have taken
/// their place for the service. `needs_old`: the old side is still used, so that it may not be gone.
pub(super) fn elsewhere(plan: &Description, recorded: &SideRows, needs_old: bool) -> Vec<PlanProblem> {
    let old = (plan.old_table(), &recorded.old, needs_old);
    let new = (plan.new_table(), &recorded.new, true);
    let both = if old.0 == new.0 { vec![new] } else { vec![old, new] };
    let mut problems = Vec::new();
    for (table, side, is_needed) in both {
        match &side.table {
            Some(name) if !is_named(table, name) => problems.push(moved(table, name, None)),
            None if is_needed => problems.push(PlanProblem::blocking(
                format!("table {table} of `expand` (oid {}) is gone", side.relation),
                "restore it, or go back to `off` and begin again",
            )),
            _ => {}
        }
    }
    problems
}

/// Whether a plan names a table, perhaps without its schema, that has this name. Both are quoted.
fn is_named(table: &str, name: &str) -> bool {
    let (wanted, found) = (split_table(table), split_table(name));
    let has_schema = wanted.0.is_none_or(|schema| found.0.map(unquote) == Some(unquote(schema)));
    has_schema && wanted.1 == found.1
}

/// `name` is what the table of `expand` is called now. `home`: the schema in which a name without one is looked up, if known.
pub(super) fn moved(table: &str, name: &str, home: Option<&str>) -> PlanProblem {
    let ((schema, wanted), (found_schema, found)) = (split_table(table), split_table(name));
    let mut statements = Vec::new();
    if wanted != found {
        statements.push(format!("`alter table {name} rename to {}`", quote(&wanted)));
    }
    if let Some(schema) = schema.or(home).filter(|schema| found_schema.map(unquote) != Some(unquote(schema)))
    {
        statements.push(format!("`alter table {} set schema {schema}`", beside(name, &wanted)));
    }
    let back = match &*statements {
        [] => "give it its schema back".to_owned(),
        some => format!("{}, after a table that has this name now has another one", some.join(", then ")),
    };
    PlanProblem::blocking(
        format!("table {table} is {name} now, or the search_path has changed"),
        format!("{back}; or name it {name} in the plan"),
    )
}

/// The schema of a table (quoted, with its schema) that this role may not use. Its names are not looked up then.
pub(super) async fn hidden(name: &str, tx: &mut PgConnection) -> Result<Option<PlanProblem>, sqlx::Error> {
    let refused: Option<(String, String)> = unprepared::query_as(
        "select quote_ident(nspname), quote_ident(current_user) from pg_namespace \
         where quote_ident(nspname) = $1 and not has_schema_privilege(oid, 'usage')",
    )
    .bind(split_table(name).0)
    .fetch_optional(tx)
    .await?;
    Ok(refused.map(|(schema, role)| {
        PlanProblem::blocking(
            format!("role {role} may not use schema {schema}, so it does not find table {name} there"),
            format!("`grant usage on schema {schema} to {role}`"),
        )
    }))
}

/// Columns of the sides that others have renamed or dropped since `expand`. `needs_old`: the old side is still used, so that none
/// of its columns may be gone.
pub(super) fn renamed(plan: &Description, recorded: &SideRows, needs_old: bool) -> Vec<PlanProblem> {
    let mut problems = Vec::new();
    let old = (plan.old_columns(), &recorded.old, needs_old);
    for (names, side, is_needed) in [old, (plan.new_columns(), &recorded.new, true)] {
        let Some(table) = side.table.as_ref().filter(|_| plan.moves_columns()) else {
            continue;
        };
        let present: Vec<String> = side.columns.iter().map(|column| unquote(column)).collect();
        let gone: Vec<&String> = names.iter().filter(|name| !present.contains(name)).collect();
        let other: Vec<&String> = present.iter().filter(|name| !names.contains(name)).collect();
        let what = |now: &str| {
            let gone: Vec<String> = gone.iter().map(|name| quote(name)).collect();
            format!("column {} of {table} {now} since `expand`, so writes are not mirrored", gone.join(", "))
        };
        problems.extend(match (&*gone, &*other) {
            ([], _) => None,
            (_, []) if !is_needed => None,
            ([name], [now]) => Some(PlanProblem::blocking(
                what(&format!("has been renamed to {}", quote(now))),
                format!("`alter table {table} rename column {} to {}`", quote(now), quote(name)),
            )),
            (_, []) => Some(PlanProblem::blocking(
                what("has been dropped"),
                "restore the column, or go back to `off` and begin again",
            )),
            (_, others) => {
                let others: Vec<String> = others.iter().map(|name| quote(name)).collect();
                let now = format!("has another name ({})", others.join(", "));
                Some(PlanProblem::blocking(what(&now), "give the columns their names back"))
            }
        });
    }
    problems
}

async fn inspect(plan: &Description, id: i32, tx: &mut PgConnection) -> Result<Found, PlanError> {
    let sides = &plan.outline.sides;
    let recorded = sides::find(tx, id).await?;
    let (mut key, mut types) = (None, [Vec::new(), Vec::new()]);
    let mut problems = recorded.as_ref().map_or_else(Vec::new, |recorded| renamed(plan, recorded, true));
    let is_renamed = !problems.is_empty();
    let both = [(&sides.old, &sides.backward), (&sides.new, &sides.forward)];
    for (number, (table, mapping)) in both.into_iter().enumerate() {
        let oid: Option<i64> = unprepared::query_scalar("select to_regclass($1)::oid::bigint")
            .bind(table)
            .fetch_one(&mut *tx)
            .await?;
        let side = recorded.as_ref().map(|sides| if number == 0 { &sides.old } else { &sides.new });
        let Some(oid) = oid else {
            problems.push(match side.filter(|side| side.is_there).and_then(|side| side.table.as_deref()) {
                Some(name) => hidden(name, tx).await?.unwrap_or_else(|| moved(table, name, None)),
                None => missing(table, tx).await?,
            });
            continue;
        };
        if let Some(side) = side.filter(|side| side.relation != oid) {
            let expanded = side.table.as_deref().filter(|_| side.is_there).unwrap_or("a table that is gone");
            problems.push(PlanProblem::blocking(
                format!(
                    "{table} is another table now than in `expand`, which was {expanded} (oid {})",
                    side.relation
                ),
                "restore the table of that time under its name, or go back to `off` and begin again",
            ));
        }
        // The new table must have the key of the old one.
        let wanted = key.as_ref().map_or_else(|| plan.outline.key.clone(), Keyset::plain_names);
        match keyset::find(tx, table, &wanted).await? {
            Ok(found) => {
                problems.extend(outdated_order(tx, table, &found.plain_names()).await?);
                key = Some(match key {
                    Some(key) => Keyset::widened(key, &found),
                    None => found,
                });
            }
            Err(reasons) => problems.extend(
                reasons
                    .into_iter()
                    .map(|reason| PlanProblem::blocking(format!("{table}: {reason}"), "restore the index")),
            ),
        }
        for (column, found) in
            mapping.columns.iter().zip(ColumnType::load(tx, table, &mapping.columns).await?)
        {
            match found {
                Some(found) => types[number].push(found),
                None if is_renamed => {}
                None => problems.push(PlanProblem::blocking(
                    format!("{table}: column {column} does not exist"),
                    "restore the column, or go back to `off` and begin again",
                )),
            }
        }
    }
    refuse(&problems)?;
    let [old_types, new_types] = types;
    let key = key.ok_or_else(|| PlanError::Refused(format!("{}: no key was found", sides.old)))?;
    Ok(Found { key, old_types, new_types })
}
