use std::fmt;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, PgTransaction, Row};

use crate::ledger::{begin, unprepared};
use crate::migration::runtime::error::Error;
use crate::migration::runtime::fence::pinned::{Call, Ending, FencedPool, FencedTransaction, PinnedTx};

/// The transaction after the commit is for `sqlx`, which has to have one to end. It is empty, nobody waits for its end, and of
/// a client that is cut off just then the server does not keep it.
const COMMIT: &str = "select 1; commit; begin; set local idle_in_transaction_session_timeout = '10s'";

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
        // The pin stays here: on a connection that died without a word that can last long, and must not hold the
        // fleet up.
        let tx = begin(self, AssertSqlSafe(statement)).await?;
        Ok(PinnedTx { tx: SqlxTx(tx), unfinished: 0, pin: call.pin })
    }
}

/// A transaction on a connection of a `sqlx::PgPool`, inside of a [`PinnedTx`].
pub struct SqlxTx(PgTransaction<'static>);

impl SqlxTx {
    pub(crate) fn connection_mut(&mut self) -> &mut PgConnection {
        &mut self.0
    }
}

impl FencedTransaction for SqlxTx {
    type Connection = PgConnection;

    fn connection(&self) -> &PgConnection {
        &self.0
    }

    async fn commit(mut self, _: Ending) -> Result<(), Error> {
        // The server answers the commit of a transaction in which a statement has failed with a rollback and no error, and
        // `sqlx` does not look. The first statement fails there.
        sqlx::raw_sql(COMMIT).execute(&mut *self.0).await?;
        tokio::spawn(self.0.commit());
        Ok(())
    }

    async fn rollback(self, _: Ending) -> Result<(), Error> {
        Ok(self.0.rollback().await?)
    }

    async fn ask(&mut self, statement: &'static str, values: &[&str]) -> Result<Vec<Vec<String>>, Error> {
        let mut query = unprepared::query(statement);
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
