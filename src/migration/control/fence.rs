use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use sqlx::{AssertSqlSafe, PgConnection, PgPool, PgTransaction};

use super::gate::{Gate, Held};
use super::{Error, Migration};
use crate::migration::phase::{Percent, Phase};

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
    const fn name(self) -> &'static str {
        match self {
            Isolation::ReadCommitted => "read committed",
            Isolation::RepeatableRead => "repeatable read",
            Isolation::Serializable => "serializable",
        }
    }
}

/// A transaction that is pinned to an epoch and has passed the fence.
///
/// Dereferences to the connection, so queries run on `&mut **tx`. A repository that takes this type can't be
/// called with an unpinned connection. Dropped without [`PinnedTx::commit`] it is rolled back.
#[must_use = "a transaction that is dropped is rolled back"]
pub struct PinnedTx {
    tx: PgTransaction<'static>,
    // Declared last, dropped last: until the rollback has been queued, the operation counts.
    pin: Held<Arc<Gate>>,
}

impl PinnedTx {
    /// See [`Migration::begin`].
    pub(super) async fn begin(
        pool: &PgPool,
        isolation: Isolation,
        migration: &Migration,
        pin: Held<Arc<Gate>>,
    ) -> Result<Self, Error> {
        // One simple-query message carries everything, so the fence costs no round trip. The server runs such
        // a message as one transaction, which the `begin` at its end turns into one that stays open. `begin`
        // comes last so that a refusal leaves the connection outside of any transaction: `sqlx` would take it
        // for clean in either case. Only numbers and names of our own go into the text.
        let statement = format!(
            "set transaction isolation level {}; select cutover.fence({}, {}, '{}'); begin",
            isolation.name(),
            migration.id(),
            pin.epoch(),
            pin.phase()
        );
        let pool = pool.clone();
        // In a task of its own, because `sqlx` does not notice when it is dropped between sending `begin` and
        // the answer: the connection would go back to the pool inside a transaction. The task always ends.
        let begun = tokio::spawn(async move {
            let tx = pool.begin_with(AssertSqlSafe(statement)).await.map_err(Error::from_fence)?;
            Ok(Self { tx, pin })
        });
        begun.await.unwrap_or(Err(Error::NotInFleet))
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

    /// Commits.
    ///
    /// # Errors
    ///
    /// The database's. After a lost connection it isn't known whether the commit took place.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: whether a dropped commit took place isn't known.
    pub async fn commit(self) -> Result<(), Error> {
        // The pin lives until the answer is there.
        let Self { tx, pin: _pin } = self;
        Ok(tx.commit().await?)
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
        let Self { tx, pin: _pin } = self;
        Ok(tx.rollback().await?)
    }
}

impl Deref for PinnedTx {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.tx
    }
}

impl DerefMut for PinnedTx {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.tx
    }
}

impl fmt::Debug for PinnedTx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedTx").field("pin", &self.pin).finish_non_exhaustive()
    }
}
