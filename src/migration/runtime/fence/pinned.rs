use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use sqlx::PgConnection;

use crate::migration::phase::{Percent, Phase};
use crate::migration::runtime::error::Error;
use crate::migration::runtime::fence::on_sqlx::SqlxTx;
use crate::migration::runtime::gate::{Gate, Held};
use crate::migration::runtime::migration::Migration;

/// How a pinned transaction is isolated from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Isolation {
    /// The server's usual level.
    #[default]
    ReadCommitted,
    /// One snapshot for the whole transaction. The fence then locks the ledger's row of the epoch, because the
    /// snapshot may be older than a close, and the transaction can fail with SQLSTATE 40001 at its beginning.
    RepeatableRead,
    /// As if transactions ran one after the other; the fence as under [`Isolation::RepeatableRead`].
    Serializable,
}

impl Isolation {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Isolation::ReadCommitted => "read committed",
            Isolation::RepeatableRead => "repeatable read",
            Isolation::Serializable => "serializable",
        }
    }
}

/// What the fence is asked.
#[derive(Debug)]
pub struct Call {
    pub(crate) isolation: Isolation,
    pub(crate) migration: i32,
    // Held for as long as the transaction may be open.
    pub(crate) pin: Held<Arc<Gate>>,
}

/// A pool on which [`Migration::begin`] begins transactions: `sqlx::PgPool` and, with the cargo feature
/// `deadpool`, `deadpool_postgres::Pool`. It can't be implemented elsewhere.
pub trait FencedPool: Send + Sync {
    /// The pool's own kind of transaction.
    type Transaction: FencedTransaction;

    /// Begins and passes the fence. Dropped or refused, it leaves no connection inside a transaction.
    #[doc(hidden)]
    fn begin(&self, call: Call) -> impl Future<Output = Result<PinnedTx<Self::Transaction>, Error>> + Send;
}

/// What is inside of a [`PinnedTx`]. It can't be implemented elsewhere.
pub trait FencedTransaction: Sized + Send {
    /// What queries run on.
    type Connection;

    #[doc(hidden)]
    fn connection(&self) -> &Self::Connection;

    #[doc(hidden)]
    fn commit(self, _: Ending) -> impl Future<Output = Result<(), Error>> + Send;

    #[doc(hidden)]
    fn rollback(self, _: Ending) -> impl Future<Output = Result<(), Error>> + Send;

    /// One of the library's own statements, whose values and answers are texts.
    #[doc(hidden)]
    fn ask(
        &mut self,
        statement: &'static str,
        values: &[&str],
    ) -> impl Future<Output = Result<Vec<Vec<String>>, Error>> + Send;
}

/// Only [`PinnedTx`] ends a transaction.
#[derive(Debug)]
pub struct Ending(());

/// A transaction that is pinned to an epoch and has passed the fence.
///
/// Dereferences to the connection: with `sqlx` queries run on `&mut *tx`, with `deadpool` its methods are those
/// of a `deadpool_postgres` client. A repository that takes this type can't be called with an unpinned
/// connection. Dropped without [`PinnedTx::commit`] it is rolled back.
///
/// A write through a [`DualWrite`](crate::migration::DualWrite) that failed, or was dropped before its end,
/// may have reached one side only. The transaction can't be committed any more then, whatever became of the error.
#[must_use = "a transaction that is dropped is rolled back"]
pub struct PinnedTx<T: FencedTransaction = SqlxTx> {
    pub(crate) tx: T,
    /// Writes over a migration's sides that have begun and not come to a good end.
    pub(crate) unfinished: u32,
    // Declared last, dropped last: until the rollback has been queued, the operation counts.
    pub(crate) pin: Held<Arc<Gate>>,
}

impl<T: FencedTransaction> PinnedTx<T> {
    /// See [`Migration::begin`].
    pub(crate) async fn begin(
        pool: &impl FencedPool<Transaction = T>,
        isolation: Isolation,
        migration: &Migration,
        pin: Held<Arc<Gate>>,
    ) -> Result<Self, Error> {
        pool.begin(Call { isolation, migration: migration.id(), pin }).await
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

    /// Whether the transaction was begun at this migration, so that its phase is this one's.
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

    /// Commits.
    ///
    /// # Errors
    ///
    /// The database's. After a lost connection it isn't known whether the commit took place. A transaction in which a
    /// statement has failed, whoever has heard of it, is rolled back, with SQLSTATE `25P02`.
    ///
    /// [`Error::Unfinished`] when a write through a [`DualWrite`](crate::migration::DualWrite) failed in this
    /// transaction, or was dropped in the middle. It has been rolled back.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: whether a dropped commit took place isn't known.
    pub async fn commit(self) -> Result<(), Error> {
        // The pin lives until the answer is there.
        let Self { tx, unfinished, pin: _pin } = self;
        if unfinished > 0 {
            // Should that fail, the server does it when the connection ends.
            let _ = tx.rollback(Ending(())).await;
            return Err(Error::Unfinished);
        }
        tx.commit(Ending(())).await
    }

    /// Rolls back and waits until that has happened.
    ///
    /// # Errors
    ///
    /// The database's; nothing is committed then either.
    ///
    /// # Cancel safety
    ///
    /// Safe: a dropped rollback is done before the connection is used again.
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
