use std::fmt;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, PgTransaction, Row};

use super::pinned::{Call, Ending, FencedPool, FencedTransaction, PinnedTx};
use crate::fleet::unnamed;
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
        // the answer: the connection would go back to the pool inside a transaction. What nobody waits for any more
        // is rolled back there. The pin stays here: on a connection that died without a word the task can last
        // long, and must not hold the fleet up.
        let begun = tokio::spawn(async move { pool.begin_with(AssertSqlSafe(statement)).await });
        match begun.await {
            Ok(tx) => Ok(PinnedTx { tx: SqlxTx(tx?), unfinished: 0, pin: call.pin }),
            // The runtime is being shut down.
            Err(_) => Err(Error::NotInFleet),
        }
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

    async fn ask(&mut self, statement: &'static str, values: &[&str]) -> Result<Vec<Vec<String>>, Error> {
        let mut query = unnamed::query(statement);
        for value in values {
            query = query.bind(*value);
        }
        let rows = query.fetch_all(&mut *self.0).await?;
        let texts = |row: &PgRow| (0..row.len()).map(|column| row.try_get(column)).collect();
        Ok(rows.iter().map(texts).collect::<Result<_, sqlx::Error>>()?)
    }
}

impl fmt::Debug for SqlxTx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlxTx").finish_non_exhaustive()
    }
}
