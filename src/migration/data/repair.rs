//! Rows whose new side could not be written: noted in the transaction that wrote the old one, and mended later.
//!
//! A row is mended in a pinned transaction of its own, which takes the row's lock first and that of its note second,
//! as writers do. What a writer notes anew meanwhile has another version and stays.

use std::time::Duration;

use serde_json::Value;
use sqlx::{Executor, PgConnection, PgPool};
use tokio::time::sleep;

use super::DualWrite;
use super::keyset::Span;
use super::mapping::How;
use super::sql::{Mapped, Scope, Sides};
use crate::migration::control::{
    Error, FencedPool, FencedTransaction, Migration, PinnedTx, PlanError, is_retryable,
};
use crate::migration::phase::Phase;

/// How many characters of an error are kept.
const KEPT: usize = 500;
/// How long the mending of a row waits for a lock.
const LOCK_TIMEOUT: &str = "set local lock_timeout = '2s'";
/// Between looks for rows that are due.
const PAUSE: Duration = Duration::from_millis(250);

/// What [`DualWrite::repair_with`] came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Repaired {
    /// Rows that are the same on both sides again.
    pub mended: usize,
    /// Rows that were tried in vain; they are due again after a while.
    pub failed: usize,
}

/// A note: a row, and which time it was that it was left behind.
#[derive(Debug)]
struct Note {
    key: String,
    version: String,
}

impl<O, N, B> DualWrite<O, N, B> {
    /// Notes in `tx` that the new side of these rows is behind, and takes back what was done to it. `false` when that
    /// is not allowed, or no longer.
    pub(super) async fn note<T: FencedTransaction>(
        &self,
        tx: &mut PinnedTx<T>,
        keys: &Value,
        error: &str,
    ) -> Result<bool, Error> {
        let (id, epoch) = (self.migration().id().to_string(), tx.epoch().to_string());
        let (keys, error): (String, String) = (keys.to_string(), error.chars().take(KEPT).collect());
        tracing::warn!(migration = self.migration().name(), keys, error, "the new side is to be repaired");
        tx.ask("rollback to savepoint cutover_new_side", &[]).await?;
        tx.ask("release savepoint cutover_new_side", &[]).await?;
        let noted = tx
            .ask(
                "select cutover.note_repairs($1::text::integer, $2::text::integer, 'new', $3::text::jsonb, $4)::text",
                &[&id, &epoch, &keys, &error],
            )
            .await?;
        Ok(noted.iter().flatten().any(|answer| answer == "true"))
    }

    /// Mends the rows that [`DualWrite::repair_later`] left behind and that are due, by a closure that gets each row's
    /// key. Where the migration's plan has its mapping in SQL the driver does this by itself; elsewhere call this
    /// from time to time, on any instance.
    ///
    /// The closure makes the new side of the row what the old one says, also where that is nothing any more. It has
    /// to **lock the old row** before it looks at it (`for no key update`): else a write that comes in between is
    /// overwritten with what was there before.
    ///
    /// A row that fails is due again after a second, then two, and so on up to five minutes; after ten failures it is
    /// left to a person: see [`repairs`](crate::migration::control::repairs).
    ///
    /// # Errors
    ///
    /// Any [`Error`] of the ledger. What the closure fails with is kept with the row.
    ///
    /// # Cancel safety
    ///
    /// Safe: each row is mended, or not.
    pub async fn repair_with<P: FencedPool, E: From<Error> + std::error::Error + 'static>(
        &self,
        pool: &P,
        mend: impl AsyncFn(&O, &N, &mut PinnedTx<P::Transaction>, &Value) -> Result<(), E>,
    ) -> Result<Repaired, Error> {
        let mut done = Repaired::default();
        for note in due(self.migration(), pool).await? {
            let mut tx = self.migration().begin(pool).await?;
            let key: Value = serde_json::from_str(&note.key).unwrap_or_default();
            let (old, new) = self.sides();
            let outcome = mend(old, new, &mut tx, &key).await;
            settle(self.migration(), pool, tx, &note, outcome, &mut done).await?;
        }
        Ok(done)
    }
}

/// Mends whatever is behind, until nothing is left but what has been given up.
pub(super) async fn run(pool: &PgPool, scope: &Scope<'_>, migration: &Migration) -> Result<(), PlanError> {
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
    if matches!(forward.how, How::Rust(_)) {
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

fn may_repair(phase: Phase) -> bool {
    (Phase::Expand..=Phase::Verify).contains(&phase)
}

async fn due<P: FencedPool>(migration: &Migration, pool: &P) -> Result<Vec<Note>, Error> {
    let mut tx = migration.begin(pool).await?;
    let mut rows = Vec::new();
    if may_repair(tx.phase()) {
        let query = "select key::text, version::text from cutover.repairs \
            where migration_id = $1::text::integer and side = 'new' and not dead and next_try_at <= clock_timestamp() \
            order by next_try_at limit 500";
        rows = tx.ask(query, &[&migration.id().to_string()]).await?;
    }
    tx.rollback().await?;
    let note = |row: Vec<String>| <[String; 2]>::try_from(row).map(|[key, version]| Note { key, version });
    Ok(rows.into_iter().filter_map(|row| note(row).ok()).collect())
}

/// Commits a mended row without its note, or writes down why it could not be mended.
async fn settle<P: FencedPool, E: std::error::Error + 'static>(
    migration: &Migration,
    pool: &P,
    mut tx: PinnedTx<P::Transaction>,
    note: &Note,
    outcome: Result<(), E>,
    done: &mut Repaired,
) -> Result<(), Error> {
    let id = migration.id().to_string();
    let failure = match outcome {
        Ok(()) => {
            // Not if a writer has left it behind again since: the note has another version then.
            let forget = "delete from cutover.repairs where migration_id = $1::text::integer and side = 'new' \
                and key = $2::text::jsonb and version = $3::text::bigint";
            tx.ask(forget, &[&id, &note.key, &note.version]).await?;
            match tx.commit().await {
                Ok(()) => {
                    done.mended += 1;
                    return Ok(());
                }
                Err(error) => (error.to_string(), is_retryable(&error)),
            }
        }
        Err(error) => {
            tx.rollback().await?;
            (error.to_string(), is_retryable(&error))
        }
    };
    let (error, passes) = failure;
    let error: String = error.chars().take(KEPT).collect();
    tracing::warn!(migration = migration.name(), key = note.key, error, "a row could not be repaired");
    done.failed += 1;
    let mut tx = migration.begin(pool).await?;
    tx.ask(
        "update cutover.repairs set error = $4, attempts = attempts + 1, \
                dead = attempts + 1 >= 10 and not $5::text::boolean, \
                next_try_at = clock_timestamp() + least(power(2, least(attempts, 20)), 300) * interval '1 second' \
         where migration_id = $1::text::integer and side = 'new' and key = $2::text::jsonb \
           and version = $3::text::bigint",
        &[&id, &note.key, &note.version, &error, if passes { "true" } else { "false" }],
    )
    .await?;
    tx.commit().await
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
