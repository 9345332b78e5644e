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

/// One connection listens, one renews the lease, one of the driver waits for locks, and one is spare. Idle connections are
/// closed.
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

    /// Runs one statement as a single message: one round trip, where a transaction takes four. It needs no transaction, also
    /// behind a pooler.
    ///
    /// The text contains its values, so these must be numbers or names of the library.
    pub(crate) async fn ask(&self, statement: String) -> Result<Vec<PgRow>, sqlx::Error> {
        sqlx::raw_sql(AssertSqlSafe(statement)).fetch_all(&*self.pool()).await
    }

    pub(crate) fn pool(&self) -> Arc<PgPool> {
        self.pool.load_full()
    }

    /// Uses new connections from now on.
    ///
    /// Called when an answer does not arrive. If the server has vanished, connections hang until the operating system closes
    /// them, which takes about a quarter of an hour, and a pool would wait that long.
    pub(crate) fn reconnect(&self) {
        self.pool.store(Arc::new(pool(&self.options)));
    }
}
