//! Rows whose new side could not be written. The transaction that wrote the old side records them, and they are repaired
//! later.
//!
//! A repair is a pinned transaction of its own. Like a writer, it locks the row first and its record second. A row that
//! falls behind again during its repair has a new version, and stays recorded.

use serde_json::Value;

use super::dual_write::DualWrite;
use super::repository_error::RepositoryError;
use crate::ledger::repairs::{self, Repair, TextConnection};
use crate::migration::catalog::ROW_WORK_SETTINGS_QUERY;
use crate::migration::phase::Phase;
use crate::migration::runtime::{Error, FencedPool, FencedTransaction, Migration, PinnedTx, is_retryable};

/// After how many attempts a row is given up, if its error is not transient.
const MAX_ATTEMPTS: u32 = 10;

/// The result of [`DualWrite::repair_with`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Repaired {
    /// Rows that are the same on both sides again.
    pub repaired: usize,
    /// Rows whose repair failed. They are due again later.
    pub failed: usize,
}

impl<T: FencedTransaction> TextConnection for PinnedTx<T> {
    type Error = Error;

    async fn ask(&mut self, statement: &'static str, values: &[&str]) -> Result<Vec<Vec<String>>, Error> {
        PinnedTx::ask(self, statement, values).await
    }
}

impl<O, N, B> DualWrite<O, N, B> {
    /// Rolls back what `tx` did to the new side of these rows, and records that it is behind. `false` if the epoch may not
    /// leave rows behind.
    pub(crate) async fn record_repairs<T: FencedTransaction>(
        &self,
        tx: &mut PinnedTx<T>,
        keys: &Value,
        error: &str,
    ) -> Result<bool, Error> {
        let (id, epoch) = (self.migration().id(), tx.pin_of(self.migration())?.epoch());
        let keys = keys.to_string();
        tracing::warn!(
            migration = self.migration().name(),
            keys,
            error,
            "could not write the new side; recorded the row for repair"
        );
        tx.ask("rollback to savepoint cutover_new_side", &[]).await?;
        tx.ask("release savepoint cutover_new_side", &[]).await?;
        repairs::record(tx, id, epoch, &keys, error).await
    }

    /// Repairs the rows that [`DualWrite::repair_later`] left behind and that are due, with a closure that gets the key of
    /// each row. The driver repairs rows by itself with the mapping of the migration's plan. Without a plan call this from
    /// time to time, on any instance.
    ///
    /// The closure has to make the new side of the row match the old side, which may not have the row any more. It has to
    /// **lock the old row** (`for no key update`) before it reads it. Otherwise it could overwrite a write that commits in
    /// between. Statements run with `row_security = off`, so a policy that would hide a row is an error, and with fixed
    /// settings such as `timezone = 'UTC'`.
    ///
    /// A row whose repair fails is due again after 1 s, 2 s, 4 s and so on, up to two minutes. After ten failures it is
    /// not tried again until a person asks for it; see [`repairs`](crate::migration::admin::repairs).
    ///
    /// # Errors
    ///
    /// Any [`Error`] of the ledger. An error of the closure is recorded with the row.
    ///
    /// # Cancel safety
    ///
    /// Safe: each row is repaired completely or not at all.
    pub async fn repair_with<P: FencedPool, E: From<Error> + RepositoryError<Kind>, Kind>(
        &self,
        pool: &P,
        repair_row: impl AsyncFn(&O, &N, &mut PinnedTx<P::Transaction>, &Value) -> Result<(), E>,
    ) -> Result<Repaired, Error> {
        let mut done = Repaired::default();
        for repair in due_repairs(self.migration(), pool, &["new"], may_repair).await? {
            let mut tx = self.migration().begin(pool).await?;
            tx.ask(&ROW_WORK_SETTINGS_QUERY, &[]).await?;
            let key: Value = serde_json::from_str(&repair.key).unwrap_or_default();
            let outcome = repair_row(&self.old, &self.new, &mut tx, &key).await;
            finish_repair(self.migration(), pool, tx, &repair, outcome, &mut done).await?;
        }
        Ok(done)
    }
}

/// Whether both sides are written in this phase, so that a row of one side may be behind.
pub(crate) fn may_repair(phase: Phase) -> bool {
    (Phase::Expand..=Phase::Switch).contains(&phase)
}

/// The rows that are due on these sides, in the phases that `may` allows.
pub(crate) async fn due_repairs<P: FencedPool>(
    migration: &Migration,
    pool: &P,
    sides: &[&str],
    may: impl Fn(Phase) -> bool,
) -> Result<Vec<Repair>, Error> {
    let mut tx = migration.begin_work(pool).await?;
    let due = match may(tx.phase()) {
        true => repairs::due(&mut tx, migration.id(), sides).await?,
        false => Vec::new(),
    };
    tx.rollback().await?;
    Ok(due)
}

/// Commits a repaired row and removes its record, or records why the repair failed.
pub(crate) async fn finish_repair<P: FencedPool, E: RepositoryError<Kind>, Kind>(
    migration: &Migration,
    pool: &P,
    mut tx: PinnedTx<P::Transaction>,
    repair: &Repair,
    outcome: Result<(), E>,
    done: &mut Repaired,
) -> Result<(), Error> {
    let (error, is_transient) = match outcome {
        Ok(()) => {
            repairs::remove(&mut tx, migration.id(), repair).await?;
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
            (error.as_error().to_string(), is_retryable(error.as_error()))
        }
    };
    tracing::warn!(migration = migration.name(), key = repair.key, error, "row not repaired");
    done.failed += 1;
    let mut tx = migration.begin_work(pool).await?;
    let max_attempts = (!is_transient).then_some(MAX_ATTEMPTS);
    repairs::fail(&mut tx, migration.id(), repair, &error, max_attempts).await?;
    tx.commit().await
}
