use std::sync::Arc;

use sqlx::{Connection, PgConnection, PgPool};
use tokio::sync::Mutex;

use super::check::{Check, CheckError, ProbeOutcome};
use crate::config::remember_password;

impl Check {
    /// A check named `postgres` of the server that `pool` connects to.
    ///
    /// The probe has one connection of its own, made from the pool's current options. It does not wait in the pool's
    /// queue, so a pool that is used up is a warning and not taken for a server that is gone. Count one more connection
    /// per instance.
    ///
    /// The probe sends an empty simple query, which also works through a transaction pooler.
    pub fn postgres(pool: &PgPool) -> Self {
        let pool = pool.clone();
        let idle = Arc::new(Mutex::new(None));
        Self::new("postgres", move || probe(pool.clone(), Arc::clone(&idle)))
    }
}

async fn probe(pool: PgPool, idle: Arc<Mutex<Option<PgConnection>>>) -> Result<ProbeOutcome, CheckError> {
    // Taken out while in use, so a probe that fails or is cancelled drops the connection.
    let kept = idle.lock().await.take();
    let mut connection = match kept {
        Some(connection) => connection,
        None => {
            let options = pool.connect_options();
            remember_password(&options);
            let options = (*options).clone().application_name("cutover-health");
            PgConnection::connect_with(&options).await?
        }
    };
    connection.ping().await?;
    *idle.lock().await = Some(connection);

    let limit = pool.options().get_max_connections();
    if pool.num_idle() == 0 && pool.size() >= limit {
        return Ok(ProbeOutcome::Warn(format!(
            "reachable, but all {limit} connections of the pool are in use"
        )));
    }
    Ok(ProbeOutcome::Pass)
}
