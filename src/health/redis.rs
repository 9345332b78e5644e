use std::sync::Arc;

use deadpool_redis::{Pool, redis};
use tokio::sync::Mutex;

use super::{Check, CheckError, ProbeOutcome};

impl Check {
    /// A check named `redis` of the server that `pool` connects to.
    ///
    /// As for [`Check::postgres`], the probe has a connection of its own beside the pool, and
    /// a used-up pool is a warning.
    pub fn redis(pool: &Pool) -> Self {
        let pool = pool.clone();
        let idle = Arc::new(Mutex::new(None));
        Self::new("redis", move || probe(pool.clone(), Arc::clone(&idle)))
    }
}

async fn probe(
    pool: Pool,
    idle: Arc<Mutex<Option<redis::aio::MultiplexedConnection>>>,
) -> Result<ProbeOutcome, CheckError> {
    use deadpool_redis::redis::cmd;

    // Taken out while in use: a probe that fails or is cancelled drops the connection.
    let kept = idle.lock().await.take();
    let mut connection = match kept {
        Some(connection) => connection,
        None => deadpool::managed::Manager::create(pool.manager()).await?,
    };
    cmd("PING").query_async::<()>(&mut connection).await?;
    *idle.lock().await = Some(connection);

    Ok(ProbeOutcome::of_pool(pool.status()))
}
