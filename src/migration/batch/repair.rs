//! Repairs rows by the plan's own mapping.

use std::time::Duration;

use serde_json::Value;
use sqlx::{Executor, PgConnection, PgPool};
use tokio::time::sleep;

use super::keyset::Span;
use super::mapping::MappingCode;
use super::queries::{Mapped, Scope, Sides};
use crate::migration::coordinator::PlanError;
use crate::migration::dual::{Repaired, due, may_repair, settle};
use crate::migration::runtime::Migration;

/// How long the mending of a row waits for a lock.
const LOCK_TIMEOUT: &str = "set local lock_timeout = '2s'";
/// Between looks for rows that are due.
const PAUSE: Duration = Duration::from_millis(250);

/// Mends whatever is behind, until nothing is left but what has been given up.
pub(crate) async fn run(pool: &PgPool, scope: &Scope<'_>, migration: &Migration) -> Result<(), PlanError> {
    loop {
        let mut done = Repaired::default();
        for note in due(migration, pool).await? {
            let mut tx = migration.begin(pool).await?;
            if !may_repair(tx.phase()) {
                return Err(PlanError::PhaseLeft);
            }
            let outcome = copy(scope, &mut tx, &note.key).await;
            settle(migration, pool, tx, &note, outcome, &mut done).await?;
        }
        let mut tx = migration.begin(pool).await?;
        let left = "select 1::text from cutover.repairs \
            where migration_id = $1::text::integer and side = 'new' and not dead limit 1";
        let is_done = tx.ask(left, &[&migration.id().to_string()]).await?.is_empty();
        tx.rollback().await?;
        if is_done {
            return Ok(());
        }
        sleep(PAUSE).await;
    }
}

/// Makes the new side of a row what the old one says, as a batch of the backfill does.
async fn copy(scope: &Scope<'_>, tx: &mut PgConnection, key: &str) -> Result<(), PlanError> {
    tx.execute(LOCK_TIMEOUT).await?;
    let Sides { old, new, forward, .. } = scope.sides;
    let span = Span::Keys(vec![key_of(key, scope.key.columns.len())?]);
    scope.lock(old, &span).execute(&mut *tx).await?;
    let mut mapped = Mapped::default();
    if matches!(forward.code, MappingCode::Rust(_)) {
        let rows = scope.rows(old, &span, true).fetch_all(&mut *tx).await?;
        let (json, failed) = forward.run(&scope.key, &rows, 'f')?;
        if let Some((_, error)) = failed.into_iter().next() {
            return Err(PlanError::Refused(error));
        }
        mapped.forward = Some(json);
    }
    scope.copy_forward(&span, &mapped).execute(&mut *tx).await?;
    if new != old {
        // A row that the old side has no more. It is locked first; then what was committed until then decides.
        scope.orphans(new, old, &span).fetch_all(&mut *tx).await?;
        scope.delete_orphans(new, old, &span).execute(&mut *tx).await?;
    }
    Ok(())
}

/// The values of a key's columns, which are JSON: one value, or an array of several.
fn key_of(json: &str, columns: usize) -> Result<Vec<String>, PlanError> {
    // Bytes, or a structure, are no column's value as it is written: such a row would not be found, and taken for mended.
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
            "the key {json} is not the text or number of the {columns} columns of the table's"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_column_by_column() {
        assert_eq!(key_of("7", 1).ok(), Some(vec!["7".to_owned()]));
        assert_eq!(key_of("\"a b\"", 1).ok(), Some(vec!["a b".to_owned()]));
        assert_eq!(key_of("[7, \"a\"]", 2).ok(), Some(vec!["7".to_owned(), "a".to_owned()]));
        assert!(key_of("[1, 2, 3]", 1).is_err() && key_of("{\"id\": 1}", 1).is_err());
        assert!(key_of("7", 2).is_err() && key_of("[1, 2, 3]", 2).is_err() && key_of("{", 1).is_err());
    }
}
