use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgRow};

/// The ledger's own connections to its database.
#[derive(Debug)]
pub(crate) struct Connections {
    pub(crate) options: PgConnectOptions,
    pool: ArcSwap<PgPool>,
}

/// One connection listens, one renews the lease; the driver adds one that waits for locks. One is to spare. Idle
/// ones are given back.
fn pool(options: &PgConnectOptions) -> PgPool {
    PgPoolOptions::new()
        .max_connections(4)
        .min_connections(0)
        .acquire_timeout(Duration::from_secs(5))
        .idle_timeout(Duration::from_secs(30))
        .max_lifetime(Duration::from_secs(30 * 60))
        .connect_lazy_with(options.clone())
}

impl Connections {
    pub(crate) fn new(options: PgConnectOptions) -> Self {
        let pool = ArcSwap::from_pointee(pool(&options));
        Self { options, pool }
    }

    /// Runs one statement as a single message: what is asked all the time has to be cheap, and this is one round
    /// trip where a transaction takes four. It needs no transaction, also behind a pooler.
    ///
    /// Values have to be in the text: numbers, and names of our own.
    pub(crate) async fn ask(&self, statement: String) -> Result<Vec<PgRow>, sqlx::Error> {
        sqlx::raw_sql(AssertSqlSafe(statement)).fetch_all(&*self.pool()).await
    }

    pub(crate) fn pool(&self) -> Arc<PgPool> {
        self.pool.load_full()
    }

    /// Leaves the present connections behind and uses new ones from now on.
    ///
    /// For when an answer doesn't come. A server that is gone without a word leaves connections that hang until
    /// the system gives them up, a quarter of an hour or so, and a pool would wait for them just as long.
    pub(crate) fn reconnect(&self) {
        self.pool.store(Arc::new(pool(&self.options)));
    }
}
