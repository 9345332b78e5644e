use std::sync::Arc;

use deadpool_postgres::{ClientWrapper, Pool};
use tokio::sync::Mutex;

use super::check::{Check, CheckError, ProbeOutcome};

impl Check {
    /// A check named `postgres` of the server that a `deadpool-postgres` pool connects to.
    ///
    /// As in [`Check::postgres`], the probe has its own connection outside the pool, and a pool that is used up is a
    /// warning.
    pub fn deadpool_postgres(pool: &Pool) -> Self {
        let pool = pool.clone();
        let idle = Arc::new(Mutex::new(None));
        Self::new("postgres", move || probe(pool.clone(), Arc::clone(&idle)))
    }
}

async fn probe(pool: Pool, idle: Arc<Mutex<Option<ClientWrapper>>>) -> Result<ProbeOutcome, CheckError> {
    // Taken out while in use, so a probe that fails or is cancelled drops the connection.
    let kept = idle.lock().await.take();
    let client = match kept {
        Some(client) => client,
        None => deadpool::managed::Manager::create(pool.manager()).await?,
    };
    client.simple_query("").await?;
    *idle.lock().await = Some(client);

    Ok(ProbeOutcome::of_pool(pool.status()))
}
