use std::fmt;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, PgTransaction, Row, SqlSafeStr};

use crate::ledger::{begin, fence, unprepared};
use crate::migration::runtime::error::Error;
use crate::migration::runtime::fence::transaction::{Ending, FenceCall, FencedPool, FencedTransaction};

/// `sqlx` needs a transaction to end after the commit, so the message begins an empty one. Its end is not waited for. If the
/// client is cut off before that, the idle limit ends it.
const COMMIT: &str = "select 1; commit; begin; set local idle_in_transaction_session_timeout = '10s'";

impl FencedPool for PgPool {
    type Transaction = SqlxTx;

    async fn begin(&self, call: FenceCall) -> Result<SqlxTx, Error> {
        // The fence is part of the message that begins the transaction, so it costs no round trip.
        let message = fence::begin_message(call.isolation.name(), &call.pins);
        // It runs in a task of its own. The pin stays with the caller: a dead connection can keep that task waiting for long,
        // which must not hold the fleet up.
        Ok(SqlxTx(begin(self, AssertSqlSafe(message)).await?))
    }
}

/// A transaction on a connection of a `sqlx::PgPool`, inside a [`PinnedTx`](crate::migration::PinnedTx).
pub struct SqlxTx(PgTransaction<'static>);

impl SqlxTx {
    pub(crate) fn connection_mut(&mut self) -> &mut PgConnection {
        &mut self.0
    }

    /// Runs these statements and commits, in one message. Returns the rows of the statements, and that of `select 1`.
    pub(crate) async fn commit_after(self, statements: String) -> Result<Vec<PgRow>, Error> {
        self.commit_with(AssertSqlSafe(format!("{statements}; {COMMIT}"))).await
    }

    async fn commit_with(mut self, message: impl SqlSafeStr) -> Result<Vec<PgRow>, Error> {
        // If a statement of the transaction has failed, the server answers `commit` with a rollback and no error, and `sqlx`
        // does not check that. `select 1` fails in such a transaction.
        let rows = sqlx::raw_sql(message).fetch_all(&mut *self.0).await?;
        tokio::spawn(self.0.commit());
        Ok(rows)
    }

    pub(crate) fn transaction_mut(&mut self) -> &mut PgTransaction<'static> {
        &mut self.0
    }
}

impl FencedTransaction for SqlxTx {
    type Connection = PgConnection;

    fn connection(&self) -> &PgConnection {
        &self.0
    }

    async fn commit(self, _: Ending) -> Result<(), Error> {
        self.commit_with(COMMIT).await?;
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
