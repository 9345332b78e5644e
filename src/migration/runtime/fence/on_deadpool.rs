use std::fmt;

use deadpool_postgres::{ClientWrapper, Object, Pool};
use futures_util::FutureExt;
use futures_util::future::join;
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use crate::migration::runtime::error::Error;
use crate::migration::runtime::fence::pinned::{Call, Ending, FencedPool, FencedTransaction, PinnedTx};

const FENCE: &str = "select cutover.fence($1, $2, $3)";

impl FencedPool for Pool {
    type Transaction = DeadpoolTx;

    async fn begin(&self, call: Call) -> Result<PinnedTx<DeadpoolTx>, Error> {
        let client = self.get().await?;
        // A round trip of its own once per connection.
        let fence = client.prepare_cached(FENCE).await?;
        let begin = format!("begin isolation level {}", call.isolation.name());
        let (epoch, phase) = (call.pin.epoch(), call.pin.phase().name());
        // From here on a drop rolls back, also where nothing has been begun yet.
        let pinned = PinnedTx { tx: DeadpoolTx { client, open: true }, unfinished: 0, pin: call.pin };
        // Both are sent before either is answered.
        let (begun, passed) =
            join(pinned.batch_execute(&begin), pinned.execute(&fence, &[&call.migration, &epoch, &phase]))
                .await;
        begun?;
        passed?;
        Ok(pinned)
    }
}

/// A transaction on a connection of a `deadpool_postgres::Pool`, inside of a [`PinnedTx`].
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
            // Asking once sends the message; the server reads it before anything that the connection's next
            // user sends. Where the transaction has ended already it does nothing.
            let _ = self.client.batch_execute("rollback").now_or_never();
        }
    }
}

impl FencedTransaction for DeadpoolTx {
    // Shared only: a mutable client could begin a transaction within this one, and commit both.
    type Connection = ClientWrapper;

    fn connection(&self) -> &ClientWrapper {
        &self.client
    }

    async fn commit(self, _: Ending) -> Result<(), Error> {
        // The server answers the commit of a transaction in which a statement has failed with a rollback and no error. The
        // first statement fails there.
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
