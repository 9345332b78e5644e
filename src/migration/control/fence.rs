use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Postgres, SqlSafeStr, TransactionManager};

use super::gate::{Gate, Pin};
use super::{Error, Migration};

type Manager = <Postgres as sqlx::Database>::TransactionManager;

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
    fn begin(self) -> &'static str {
        match self {
            Isolation::ReadCommitted => "begin isolation level read committed",
            Isolation::RepeatableRead => "begin isolation level repeatable read",
            Isolation::Serializable => "begin isolation level serializable",
        }
    }
}

/// A transaction that is pinned to an epoch and has passed the fence.
///
/// Dereferences to the connection, so queries run on `&mut *tx`. A repository that takes this type can't be
/// called with an unpinned connection. Dropped without [`PinnedTx::commit`] it is rolled back.
#[must_use = "a transaction that is dropped is rolled back"]
pub struct PinnedTx {
    connection: PoolConnection<Postgres>,
    state: State,
    // Declared last, dropped last: until the rollback has been queued, the operation counts.
    pin: Pin<Arc<Gate>>,
}

#[derive(PartialEq, Eq)]
enum State {
    /// What the server made of it isn't known yet.
    Beginning,
    Open,
    Finished,
}

impl PinnedTx {
    /// See [`Migration::begin`].
    pub(super) async fn begin(
        pool: &PgPool,
        isolation: Isolation,
        migration: &Migration,
        pin: Pin<Arc<Gate>>,
    ) -> Result<Self, Error> {
        let connection = pool.acquire().await?;
        let mut tx = Self { connection, state: State::Beginning, pin };
        // Only numbers and a phase's name go into this text. One simple-query message carries both commands,
        // so the fence costs no round trip.
        let statement = format!(
            "{}; select cutover.fence({}, {}, '{}')",
            isolation.begin(),
            migration.id(),
            tx.pin.epoch(),
            tx.pin.phase()
        );
        match Manager::begin(&mut tx.connection, Some(AssertSqlSafe(statement).into_sql_str())).await {
            Ok(()) => tx.state = State::Open,
            Err(error) => {
                // The server is inside a failed transaction that the pool would take for a clean connection.
                if sqlx::raw_sql("rollback").execute(&mut *tx.connection).await.is_ok() {
                    tx.state = State::Finished;
                }
                return Err(Error::from_fence(error));
            }
        }
        Ok(tx)
    }

    /// The epoch, and its phase, that the transaction runs at.
    pub fn pin(&self) -> &Pin<Arc<Gate>> {
        &self.pin
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
    pub async fn commit(mut self) -> Result<(), Error> {
        Manager::commit(&mut self.connection).await?;
        self.state = State::Finished;
        Ok(())
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
    pub async fn rollback(mut self) -> Result<(), Error> {
        Manager::rollback(&mut self.connection).await?;
        self.state = State::Finished;
        Ok(())
    }
}

impl Deref for PinnedTx {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for PinnedTx {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

impl Drop for PinnedTx {
    fn drop(&mut self) {
        match self.state {
            State::Beginning => self.connection.close_on_drop(),
            State::Open => Manager::start_rollback(&mut self.connection),
            State::Finished => {}
        }
    }
}

impl fmt::Debug for PinnedTx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedTx").field("pin", &self.pin).finish_non_exhaustive()
    }
}
