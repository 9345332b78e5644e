//! A trial of both mappings on some rows, before `expand`: what the copy, the scan and the way back would find.
//!
//! The rows are copied into temporary tables, and both mappings run there as batches run them. Everything is rolled back. A
//! report names keys and never values.

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};

use super::attached_trial::violated;
use super::description::{Description, add_columns};
use crate::ledger::jobs::KeyText;
use crate::ledger::{is_refusal, sql_state, unprepared};
use crate::migration::batch::{
    ColumnType, Keyset, MappedRows, Mapping, RowBytes, Scope, Sides, Span, display_key, keyset,
};
use crate::migration::catalog::{Attached, PlanProblem, ROW_WORK_SETTINGS, TableFacts, unquote};

/// How many rows are tried.
const SAMPLE: u32 = 200;
const OLD: &str = "pg_temp.cutover_sample";
const NEW: &str = "pg_temp.cutover_sample_new";

/// What one direction found: the rows that cannot be mapped, each with the reason in a form without values.
type Failed = Vec<(KeyText, String)>;

/// What both mappings do with some rows, and what these violate then. `new` is what the catalog says about the new table, if that
/// is another one; `attached` is what the new side does not have yet.
pub(crate) async fn try_mappings(
    plan: &Description,
    old: &TableFacts,
    new: Option<&TableFacts>,
    (key, attached): (&Keyset, &[Attached]),
    connection: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let mut tx = connection.begin().await?;
    let found = match trial(plan, old, new, (key, attached), &mut tx).await {
        // The trial itself is not possible, for example without the right to create temporary tables.
        Err(sqlx::Error::Database(error)) => {
            tracing::debug!(%error, "could not try the mappings");
            Ok(Vec::new())
        }
        found => found,
    };
    tx.rollback().await?;
    found
}

async fn trial(
    plan: &Description,
    old: &TableFacts,
    new: Option<&TableFacts>,
    (key, attached): (&Keyset, &[Attached]),
    tx: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    prepare(plan, old, new, key, tx).await?;
    let described = &plan.outline.sides;
    let sides = Sides {
        old: OLD.to_owned(),
        new: if new.is_some() { NEW } else { OLD }.to_owned(),
        forward: described.forward.clone(),
        backward: described.backward.clone(),
        part: described.part.clone(),
    };
    let Ok(key) = keyset::find(tx, OLD, &key.plain_names()).await? else { return Ok(Vec::new()) };
    let types = async |table: &str, columns: &[String], tx: &mut PgConnection| {
        ColumnType::load(tx, table, columns).await.map(|types| types.into_iter().collect::<Option<Vec<_>>>())
    };
    let old_types = types(&sides.old, &sides.backward.columns, tx).await?;
    let new_types = types(&sides.new, &sides.forward.columns, tx).await?;
    let (Some(old_types), Some(new_types)) = (old_types, new_types) else { return Ok(Vec::new()) };
    let scope = Scope { sides: &sides, key, old_types, new_types };
    let names = scope.key.as_text("t");
    let rows = unprepared::query(AssertSqlSafe(format!("select {names} as key from {OLD} as t")));
    let keys: Vec<KeyText> =
        rows.fetch_all(&mut *tx).await?.iter().map(|row| row.try_get("key")).collect::<Result<_, _>>()?;
    let (mut failed, mut lost) = (Vec::new(), Vec::new());
    one_way(&scope, &keys, tx, &mut failed, &mut lost).await?;
    let mut problems = report(plan, &scope, keys.len(), &failed, &lost);
    if new.is_some() {
        problems.extend(without_partition(plan, &scope, tx).await?);
    }
    if failed.is_empty() {
        problems.extend(violated(plan, attached, &sides.new, tx).await?);
    }
    Ok(problems)
}

/// Temporary tables like both sides, with some rows of the old one.
async fn prepare(
    plan: &Description,
    old: &TableFacts,
    new: Option<&TableFacts>,
    key: &Keyset,
    tx: &mut PgConnection,
) -> Result<(), sqlx::Error> {
    let (columns, names, table) = (old.stored_columns(), key.names(), plan.old_table());
    let like = |name: &str, table: &str, more: &str| {
        format!(
            "create temporary table {name} (like {table} including defaults including generated{more}) on commit drop; \
             create unique index on {name} ({names}); "
        )
    };
    let mut statements = format!("{}{}", *ROW_WORK_SETTINGS, like(OLD, table, ""));
    if plan.moves_columns() {
        statements.push_str(&format!("alter table {OLD}{}; ", add_columns(&plan.added())));
    }
    if new.is_some() {
        statements.push_str(&like(NEW, plan.new_table(), " including constraints including indexes"));
    }
    let part = plan.part().map(|part| format!(" where {}", part.holds())).unwrap_or_default();
    let mut sample = format!("select * from {table}{part} limit {SAMPLE}");
    if let Some(bytes) = RowBytes::of(tx, table).await? {
        sample = bytes.first_of(&sample);
    }
    statements.push_str(&format!(
        "insert into {OLD} ({columns}) overriding system value select {columns} from ({sample}) as sample",
    ));
    tx.execute(AssertSqlSafe(statements)).await?;
    Ok(())
}

/// Maps these rows there and back. Halves them until each failure is alone with its row.
async fn one_way(
    scope: &Scope<'_>,
    keys: &[KeyText],
    tx: &mut PgConnection,
    failed: &mut Failed,
    lost: &mut Vec<KeyText>,
) -> Result<(), sqlx::Error> {
    if keys.is_empty() {
        return Ok(());
    }
    let mut savepoint = tx.begin().await?;
    match map_and_compare(scope, &Span::Keys(keys.to_vec()), &mut savepoint).await {
        Ok((rows, differing)) => {
            savepoint.commit().await?;
            lost.extend(differing.into_iter().filter(|key| !rows.iter().any(|(other, _)| other == key)));
            failed.extend(rows);
            Ok(())
        }
        Err(error) if is_refusal(&error) => {
            savepoint.rollback().await?;
            if let [key] = keys {
                failed.push((key.clone(), reason(&error)));
                return Ok(());
            }
            let (first, second) = keys.split_at(keys.len() / 2);
            Box::pin(one_way(scope, first, tx, failed, lost)).await?;
            Box::pin(one_way(scope, second, tx, failed, lost)).await
        }
        Err(error) => Err(error),
    }
}

/// Without values of the row.
fn reason(error: &sqlx::Error) -> String {
    let constraint = error.as_database_error().and_then(|error| error.constraint());
    match (sql_state(error).as_deref(), constraint) {
        (Some("23514"), Some(name)) => format!("check {name:?} refuses it"),
        (Some("23505"), _) => "a unique index refuses it".to_owned(),
        (state, _) => format!("SQLSTATE {}", state.unwrap_or_default()),
    }
}

/// The rows on which a mapping in Rust fails, and the rows whose value does not come back.
async fn map_and_compare(
    scope: &Scope<'_>,
    span: &Span,
    tx: &mut PgConnection,
) -> Result<(Failed, Vec<KeyText>), sqlx::Error> {
    let Sides { old, new, forward, backward, .. } = scope.sides;
    let mut failed = Vec::new();
    let mut run = |mapping: &Mapping, rows: &[sqlx::postgres::PgRow], letter: char| {
        let (json, bad) = scope.run(mapping, rows, letter)?;
        failed.extend(bad.into_iter().map(|(key, _)| (key, "the mapping in Rust failed".to_owned())));
        Ok::<_, sqlx::Error>(json)
    };
    let mut mapped = MappedRows::default();
    if forward.is_rust() {
        let rows = scope.rows(old, span, false).fetch_all(&mut *tx).await?;
        mapped.forward = Some(run(forward, &rows, 'f')?);
    }
    scope.copy_forward(span, &mapped).execute(&mut *tx).await?;
    if backward.is_rust() {
        let rows = scope.rows(new, span, false).fetch_all(&mut *tx).await?;
        mapped.backward = Some(run(backward, &rows, 'b')?);
    }
    if forward.is_rust() {
        let rows = scope.rows_back(span, &mapped).fetch_all(&mut *tx).await?;
        mapped.round_trip = Some(run(forward, &rows, 't')?);
    }
    let found = scope.differences(span, &mapped).fetch_all(&mut *tx).await?;
    let lost: Vec<KeyText> = found.iter().map(|row| row.try_get("key")).collect::<Result<_, _>>()?;
    Ok((failed, lost))
}

/// The rows that no partition of the new table takes.
async fn without_partition(
    plan: &Description,
    scope: &Scope<'_>,
    tx: &mut PgConnection,
) -> Result<Option<PlanProblem>, sqlx::Error> {
    let takes: Option<String> = unprepared::query_scalar(
        "select string_agg(coalesce(pg_get_partition_constraintdef(p.relid), 'true'), ' or ') \
         from pg_partition_tree(to_regclass($1)) p join pg_class c on c.oid = p.relid \
         where p.isleaf and p.parentrelid is not null",
    )
    .bind(plan.new_table())
    .fetch_one(&mut *tx)
    .await?;
    let Some(takes) = takes else { return Ok(None) };
    let query =
        format!("select {} as key from {NEW} as t where ({takes}) is not true", scope.key.as_text("t"));
    let rows = unprepared::query(AssertSqlSafe(query)).fetch_all(&mut *tx).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let (key, new): (KeyText, _) = (row.try_get("key")?, plan.new_table());
    Ok(Some(PlanProblem::blocking(
        format!(
            "no partition of {new} takes {} of {SAMPLE} sampled rows, for example the row with key {}",
            rows.len(),
            display_key(&key)
        ),
        format!(
            "`create table … partition of {new} …` for these rows, or `create table … partition of {new} default`, as `.expand_sql(…)`"
        ),
    )))
}

fn report(
    plan: &Description,
    scope: &Scope<'_>,
    tried: usize,
    failed: &Failed,
    lost: &[KeyText],
) -> Vec<PlanProblem> {
    let names: Vec<String> = scope.key.plain_names().iter().map(|name| unquote(name)).collect();
    let (names, table) = (names.join(", "), plan.old_table());
    let mut problems = Vec::new();
    if let Some((key, reason)) = failed.first() {
        problems.push(PlanProblem::warning(
            format!(
                "the mapping fails for {} of {tried} sampled rows of {table}, for example {names} = {} ({reason})",
                failed.len(),
                display_key(key)
            ),
            "correct the mapping or these rows; otherwise the copy sets them aside and `verify` is not entered",
        ));
    }
    if let Some(key) = lost.first() {
        let what = format!(
            "`forward` of `backward` gives another value for {} of {tried} sampled rows of {table}, for example {names} \
                 = {}",
            lost.len(),
            display_key(key)
        );
        // Of a split or a merge nothing else holds the value any more.
        let is_blocking = plan.part().is_some() || plan.old_columns().len() + plan.new_columns().len() > 2;
        let remedy = "correct the mappings, so that the way back keeps every value; otherwise the scan in `verify` reports these rows";
        problems.push(PlanProblem { is_blocking, ..PlanProblem::warning(what, remedy) });
    }
    problems
}
