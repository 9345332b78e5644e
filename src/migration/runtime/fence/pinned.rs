use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use sqlx::PgConnection;

use crate::migration::phase::{Percent, Phase};
use crate::migration::runtime::error::Error;
use crate::migration::runtime::fence::on_sqlx::SqlxTx;
use crate::migration::runtime::fence::transaction::{
    Ending, FenceCall, FencedPool, FencedTransaction, Isolation,
};
use crate::migration::runtime::gate::{Gate, Held};
use crate::migration::runtime::migration::Migration;

/// A transaction that is pinned to an epoch and has passed the fence.
///
/// It dereferences to the connection: with `sqlx`, queries run on `&mut *tx`; with `deadpool`, its methods are those of a
/// `deadpool_postgres` client. A repository that takes this type cannot be called with an unpinned connection. A
/// transaction that is dropped without [`PinnedTx::commit`] is rolled back.
///
/// A write through a [`DualWrite`](crate::migration::DualWrite) that failed, or was dropped before its end, may have reached
/// one side only. The transaction can then no longer be committed, whatever the caller does with the error.
#[must_use = "a transaction that is dropped is rolled back"]
pub struct PinnedTx<T: FencedTransaction = SqlxTx> {
    pub(crate) tx: T,
    /// Writes to a migration's sides that have begun and not succeeded.
    pub(crate) unfinished: u32,
    // Declared last, so dropped last: the operation counts until the rollback has been queued.
    pub(crate) pin: Held<Arc<Gate>>,
}

impl<T: FencedTransaction> PinnedTx<T> {
    /// See [`Migration::begin`]. The pin is held until the transaction is dropped, or until this future is.
    pub(crate) async fn begin(
        pool: &impl FencedPool<Transaction = T>,
        isolation: Isolation,
        migration: &Migration,
        pin: Held<Arc<Gate>>,
    ) -> Result<Self, Error> {
        let call = FenceCall { isolation, migration: migration.id(), epoch: pin.epoch(), phase: pin.phase() };
        let tx = pool.begin(call).await?;
        Ok(Self { tx, unfinished: 0, pin })
    }

    /// The phase that the transaction runs at.
    pub fn phase(&self) -> Phase {
        self.pin.phase()
    }

    /// The epoch that the transaction runs at.
    pub fn epoch(&self) -> i32 {
        self.pin.epoch()
    }

    /// The share of keys to read from the new side in [`Phase::Ramp`].
    pub fn ramp(&self) -> Percent {
        self.pin.ramp()
    }

    /// Whether the transaction was begun with this migration, so that its phase is this migration's.
    pub fn is_of(&self, migration: &Migration) -> bool {
        std::ptr::eq(self.pin.gate(), migration.gate())
    }

    /// Until [`PinnedTx::write_ended`] is called as often, the transaction can't be committed.
    #[inline]
    pub(crate) fn write_begins(&mut self) {
        self.unfinished += 1;
    }

    #[inline]
    pub(crate) fn write_ended(&mut self) {
        self.unfinished -= 1;
    }

    /// See [`FencedTransaction::ask`].
    pub(crate) async fn ask(
        &mut self,
        statement: &'static str,
        values: &[&str],
    ) -> Result<Vec<Vec<String>>, Error> {
        self.tx.ask(statement, values).await
    }

    /// Commits the transaction.
    ///
    /// # Errors
    ///
    /// The database's error. After a lost connection, it is not known whether the transaction committed. A transaction in
    /// which a statement has failed is rolled back, with SQLSTATE `25P02`, also if the caller ignored that error.
    ///
    /// [`Error::Unfinished`] if a write through a [`DualWrite`](crate::migration::DualWrite) failed in this transaction, or
    /// was dropped before its end. The transaction has been rolled back.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: after a drop it is not known whether the transaction committed.
    pub async fn commit(self) -> Result<(), Error> {
        // The pin is held until the server has answered.
        let Self { tx, unfinished, pin: _pin } = self;
        if unfinished > 0 {
            // If that fails, the server rolls back when the connection ends.
            let _ = tx.rollback(Ending(())).await;
            return Err(Error::Unfinished);
        }
        tx.commit(Ending(())).await
    }

    /// Rolls the transaction back and waits until that has happened.
    ///
    /// # Errors
    ///
    /// The database's error. Nothing is committed then either.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: after a drop, the rollback happens before the connection is used again.
    pub async fn rollback(self) -> Result<(), Error> {
        let Self { tx, pin: _pin, .. } = self;
        tx.rollback(Ending(())).await
    }
}

impl<T: FencedTransaction> Deref for PinnedTx<T> {
    type Target = T::Connection;

    fn deref(&self) -> &T::Connection {
        self.tx.connection()
    }
}

impl DerefMut for PinnedTx {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.tx.connection_mut()
    }
}

impl<T: FencedTransaction> fmt::Debug for PinnedTx<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedTx").field("pin", &self.pin).finish_non_exhaustive()
    }
}
