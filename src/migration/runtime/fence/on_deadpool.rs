use std::fmt;

use deadpool_postgres::{ClientWrapper, Object, Pool};
use futures_util::FutureExt;
use futures_util::future::join;
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use crate::ledger::fence;
use crate::migration::runtime::error::Error;
use crate::migration::runtime::fence::transaction::{Ending, FenceCall, FencedPool, FencedTransaction};

impl FencedPool for Pool {
    type Transaction = DeadpoolTx;

    async fn begin(&self, call: FenceCall) -> Result<DeadpoolTx, Error> {
        let client = self.get().await?;
        let fence = fence::call_with_parameters(call.pins.len());
        let arguments: Vec<(&(dyn ToSql + Sync), Type)> = call
            .pins
            .iter()
            .flat_map(|pin| {
                let migration: &(dyn ToSql + Sync) = &pin.migration;
                [
                    (migration, Type::INT4),
                    (&pin.epoch, Type::INT4),
                    (&pin.phase, Type::TEXT),
                    (&pin.mirrors, Type::BOOL),
                ]
            })
            .collect();
        let begin = format!("begin isolation level {}", call.isolation.name());
        // From here on a drop rolls back, also if nothing has begun yet.
        let tx = DeadpoolTx { client, open: true };
        // Both messages are sent before either is answered. The fence has no name: behind a pooler in transaction mode, a name
        // may belong to the statement of another client, which would then run in place of the fence.
        let (begun, passed) =
            join(tx.client.batch_execute(&begin), tx.client.query_typed(&fence, &arguments)).await;
        begun?;
        passed?;
        Ok(tx)
    }
}

/// A transaction on a connection of a `deadpool_postgres::Pool`, inside a [`PinnedTx`](crate::migration::PinnedTx).
pub struct DeadpoolTx {
    client: Object,
    open: bool,
}

impl DeadpoolTx {
    async fn end(mut self, statement: &str) -> Result<(), Error> {
        self.client.batch_execute(statement).await?;
        self.open = false;
        Ok(())
    }
}

impl Drop for DeadpoolTx {
    fn drop(&mut self) {
        if self.open {
            // The first poll sends the message. The server reads it before anything that the connection's next user
            // sends. If the transaction has already ended, the message has no effect.
            let _ = self.client.batch_execute("rollback").now_or_never();
        }
    }
}

impl FencedTransaction for DeadpoolTx {
    // A shared reference only: a mutable client could begin a transaction within this one, and commit both.
    type Connection = ClientWrapper;

    fn connection(&self) -> &ClientWrapper {
        &self.client
    }

    async fn commit(self, _: Ending) -> Result<(), Error> {
        // If a statement of the transaction has failed, the server answers `commit` with a rollback and no error. `select 1`
        // fails in such a transaction.
        self.end("select 1; commit").await
    }

    async fn rollback(self, _: Ending) -> Result<(), Error> {
        self.end("rollback").await
    }

    async fn ask(&mut self, statement: &'static str, values: &[&str]) -> Result<Vec<Vec<String>>, Error> {
        let values: Vec<(&(dyn ToSql + Sync), Type)> =
            values.iter().map(|value| (value as &(dyn ToSql + Sync), Type::TEXT)).collect();
        let rows = self.client.query_typed(statement, &values).await?;
        let texts = |row: &Row| (0..row.len()).map(|column| row.try_get(column)).collect();
        Ok(rows.iter().map(texts).collect::<Result<_, tokio_postgres::Error>>()?)
    }
}

impl fmt::Debug for DeadpoolTx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadpoolTx").finish_non_exhaustive()
    }
}
