use std::fmt;

use sqlx::{AssertSqlSafe, PgConnection, PgPool, PgTransaction};

use super::pinned::{Call, Ending, FencedPool, FencedTransaction, PinnedTx};
use crate::migration::control::Error;

impl FencedPool for PgPool {
    type Transaction = SqlxTx;

    async fn begin(&self, call: Call) -> Result<PinnedTx, Error> {
        // One simple-query message carries everything, so the fence costs no round trip. The server runs such
        // a message as one transaction, which the `begin` at its end turns into one that stays open. `begin`
        // comes last so that a refusal leaves the connection outside of any transaction: `sqlx` would take it
        // for clean in either case. Only numbers and names of our own go into the text.
        let statement = format!(
            "set transaction isolation level {}; select cutover.fence({}, {}, '{}'); begin",
            call.isolation.name(),
            call.migration,
            call.pin.epoch(),
            call.pin.phase()
        );
        let pool = self.clone();
        // In a task of its own, because `sqlx` does not notice when it is dropped between sending `begin` and
        // the answer: the connection would go back to the pool inside a transaction. The task always ends.
        let begun = tokio::spawn(async move {
            let tx = pool.begin_with(AssertSqlSafe(statement)).await?;
            Ok(PinnedTx { tx: SqlxTx(tx), pin: call.pin })
        });
        begun.await.unwrap_or(Err(Error::NotInFleet))
    }
}

/// A transaction on a connection of a `sqlx::PgPool`, inside of a [`PinnedTx`].
pub struct SqlxTx(PgTransaction<'static>);

impl SqlxTx {
    pub(super) fn connection_mut(&mut self) -> &mut PgConnection {
        &mut self.0
    }
}

impl FencedTransaction for SqlxTx {
    type Connection = PgConnection;

    fn connection(&self) -> &PgConnection {
        &self.0
    }

    async fn commit(self, _: Ending) -> Result<(), Error> {
        Ok(self.0.commit().await?)
    }

    async fn rollback(self, _: Ending) -> Result<(), Error> {
        Ok(self.0.rollback().await?)
    }
}

impl fmt::Debug for SqlxTx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlxTx").finish_non_exhaustive()
    }
}
