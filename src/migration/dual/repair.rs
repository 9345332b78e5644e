//! Rows whose new side could not be written: noted in the transaction that wrote the old one, and mended later.
//!
//! A row is mended in a pinned transaction of its own, which takes the row's lock first and that of its note second,
//! as writers do. What a writer notes anew meanwhile has another version and stays.

use serde_json::Value;

use super::dual::DualWrite;
use crate::migration::phase::Phase;
use crate::migration::runtime::{Error, FencedPool, FencedTransaction, Migration, PinnedTx, is_retryable};

/// How many characters of an error are kept.
const KEPT: usize = 500;

/// What [`DualWrite::repair_with`] came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Repaired {
    /// Rows that are the same on both sides again.
    pub repaired: usize,
    /// Rows that were tried in vain; they are due again after a while.
    pub failed: usize,
}

/// A note: a row, and which time it was that it was left behind.
#[derive(Debug)]
pub(crate) struct Note {
    pub(crate) key: String,
    version: String,
}

impl<O, N, B> DualWrite<O, N, B> {
    /// Notes in `tx` that the new side of these rows is behind, and takes back what was done to it. `false` when that
    /// is not allowed, or no longer.
    pub(crate) async fn note<T: FencedTransaction>(
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
                "select cutover.record_repairs($1::text::integer, $2::text::integer, 'new', $3::text::jsonb, $4)::text",
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
    /// left to a person: see [`repairs`](crate::migration::admin::repairs).
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

pub(crate) fn may_repair(phase: Phase) -> bool {
    (Phase::Expand..=Phase::Verify).contains(&phase)
}

pub(crate) async fn due<P: FencedPool>(migration: &Migration, pool: &P) -> Result<Vec<Note>, Error> {
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
pub(crate) async fn settle<P: FencedPool, E: std::error::Error + 'static>(
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
                    done.repaired += 1;
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
