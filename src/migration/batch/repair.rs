//! Repairs rows by the mapping of the plan.

use std::time::Duration;

use serde_json::Value;
use sqlx::{AssertSqlSafe, Executor, PgConnection};
use tokio::time::sleep;

use super::errors::explain_row_security;
use super::keyset::Span;
use super::mapping::Mapping;
use super::pass::Outline;
use super::sides::{MappedRows, Scope, Sides};
use crate::ledger::repairs::{self, Repair};
use crate::migration::catalog::{ROW_WORK_SETTINGS, SKIP_TRIGGERS};
use crate::migration::coordinator::PlanError;
use crate::migration::dual::{Repaired, due_repairs, finish_repair, may_repair};
use crate::migration::phase::Phase;
use crate::migration::runtime::Migration;

/// How long a repair waits for a lock.
const LOCK_TIMEOUT: &str = "set local lock_timeout = '2s'";
/// The sides of which rows are repaired.
const SIDES: [&str; 2] = ["old", "new"];
/// Time between two queries for rows that are due.
const POLL: Duration = Duration::from_millis(250);

/// Repairs rows that are behind until none are left except those that were given up.
pub(crate) async fn run(
    outline: &Outline,
    scope: &Scope<'_>,
    migration: &Migration,
) -> Result<(), PlanError> {
    let pool = &outline.pool;
    let skip = if outline.skips_triggers { SKIP_TRIGGERS } else { "" };
    // From `retire` on the old columns are outdated. What is recorded then belongs to no row of the old table, or to one that
    // has it by right.
    let all_rows = scope.sides.of_all_rows();
    let of_all_rows = Scope { sides: &all_rows, ..scope.clone() };
    let removes = |phase| phase == Phase::Retire && scope.keeps_rows();
    let may = |phase| may_repair(phase) || removes(phase);
    loop {
        let mut done = Repaired::default();
        for repair in due_repairs(migration, pool, &SIDES, may).await? {
            let mut tx = migration.begin_work(pool).await?;
            let outcome = match tx.phase() {
                phase if may_repair(phase) => copy(scope, &mut tx, &repair, skip).await,
                phase if removes(phase) => remove_alone(&of_all_rows, &mut tx, &repair, skip).await,
                _ => return Err(PlanError::PhaseLeft),
            };
            let outcome = match outcome {
                Err(error) => Err(explain_row_security(pool, &scope.tables(), error).await),
                done => done,
            };
            finish_repair(migration, pool, tx, &repair, outcome, &mut done).await?;
        }
        let mut tx = migration.begin_work(pool).await?;
        let has_pending = repairs::has_pending(&mut tx, migration.id(), &SIDES).await?;
        let is_over = !may(tx.phase());
        tx.rollback().await?;
        if !has_pending {
            return Ok(());
        }
        if is_over {
            return Err(PlanError::PhaseLeft);
        }
        sleep(POLL).await;
    }
}

/// Copies the row to the side that is behind, as a batch of a copy in that direction does.
async fn copy(
    scope: &Scope<'_>,
    tx: &mut PgConnection,
    repair: &Repair,
    skip: &str,
) -> Result<(), PlanError> {
    let Sides { old, new, forward, backward, .. } = scope.sides;
    let is_back = repair.side == "old";
    let (from, to) = if is_back { (new, old) } else { (old, new) };
    let span = lock(scope, from, tx, repair, skip).await?;
    let mut mapped = MappedRows::default();
    if forward.is_rust() {
        mapped.forward = Some(map(scope, forward, (old, 'f'), &span, tx).await?);
    }
    if is_back && backward.is_rust() {
        mapped.backward = Some(map(scope, backward, (new, 'b'), &span, tx).await?);
    }
    let copy = if is_back { scope.copy_back(&span, &mapped) } else { scope.copy_forward(&span, &mapped) };
    copy.execute(&mut *tx).await?;
    if new != old {
        remove_orphan(scope, to, from, &span, tx).await?;
    }
    Ok(())
}

/// Removes the row of the new table if the old one does not have its key any more.
async fn remove_alone(
    scope: &Scope<'_>,
    tx: &mut PgConnection,
    repair: &Repair,
    skip: &str,
) -> Result<(), PlanError> {
    let Sides { old, new, .. } = scope.sides;
    let span = lock(scope, old, tx, repair, skip).await?;
    remove_orphan(scope, new, old, &span, tx).await
}

/// Locks the row in the table from which it is repaired.
async fn lock(
    scope: &Scope<'_>,
    table: &str,
    tx: &mut PgConnection,
    repair: &Repair,
    skip: &str,
) -> Result<Span, PlanError> {
    tx.execute(AssertSqlSafe(format!("{}{skip}{LOCK_TIMEOUT}", *ROW_WORK_SETTINGS))).await?;
    let span = Span::Keys(vec![key_values(&repair.key, scope.key.columns.len())?]);
    scope.lock(table, &span).execute(&mut *tx).await?;
    Ok(span)
}

/// Removes the row from `to` if `from` does not have it any more. A first statement locks it; the second one sees everything
/// that was committed before the lock.
async fn remove_orphan(
    scope: &Scope<'_>,
    to: &str,
    from: &str,
    span: &Span,
    tx: &mut PgConnection,
) -> Result<(), PlanError> {
    scope.orphans(to, from, span).fetch_all(&mut *tx).await?;
    scope.delete_orphans(to, from, span).execute(&mut *tx).await?;
    Ok(())
}

/// Runs a mapping in Rust over the row.
async fn map(
    scope: &Scope<'_>,
    mapping: &Mapping,
    (table, letter): (&str, char),
    span: &Span,
    tx: &mut PgConnection,
) -> Result<String, PlanError> {
    let rows = scope.rows(table, span, true).fetch_all(tx).await?;
    let (json, failed) = scope.run(mapping, &rows, letter)?;
    match failed.into_iter().next() {
        Some((_, error)) => Err(PlanError::Refused(error)),
        None => Ok(json),
    }
}

/// The values of the key's columns. As JSON they are one value, or an array of several.
fn key_values(json: &str, columns: usize) -> Result<Vec<String>, PlanError> {
    // Bytes or a structure are not the text of a column's value. The row would not be found and would count as repaired.
    let text = |value: Value| match value {
        Value::String(text) => Some(text),
        Value::Array(_) | Value::Object(_) | Value::Null => None,
        other => Some(other.to_string()),
    };
    let values: Option<Vec<String>> = match serde_json::from_str(json) {
        Ok(Value::Array(values)) if columns > 1 => values.into_iter().map(text).collect(),
        Ok(value) => text(value).map(|text| vec![text]),
        Err(_) => None,
    };
    values.filter(|values| values.len() == columns).ok_or_else(|| {
        PlanError::Refused(format!(
            "the key {json} of a row to repair is not made of {columns} texts or numbers, one for each column of the \
             table's key; write the row with `Rows::one` of such a key"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_column_by_column() {
        assert_eq!(key_values("7", 1).ok(), Some(vec!["7".to_owned()]));
        assert_eq!(key_values("\"a b\"", 1).ok(), Some(vec!["a b".to_owned()]));
        assert_eq!(key_values("[7, \"a\"]", 2).ok(), Some(vec!["7".to_owned(), "a".to_owned()]));
        assert!(key_values("[1, 2, 3]", 1).is_err() && key_values("{\"id\": 1}", 1).is_err());
        assert!(key_values("7", 2).is_err() && key_values("[1, 2, 3]", 2).is_err());
        assert!(key_values("{", 1).is_err());
    }
}
