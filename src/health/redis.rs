use std::sync::Arc;

use deadpool_redis::redis::{RedisError, cmd};
use tokio::sync::Mutex;

use super::check::{Check, CheckError, ProbeOutcome};
use crate::redis::{AnyConnection, RedisPool, describe, is_missing_privilege};

/// The probe's key. It expires on its own, so the check leaves nothing behind.
const KEY: &str = "cutover:health";
/// Longer than the usual interval between probes.
const KEY_TTL_SECONDS: u8 = 60;

impl Check {
    /// A check named `redis` of the server, the primary or the cluster that `pool` connects to. Of a cluster, it writes to the
    /// part that has the key.
    ///
    /// The probe writes the key `cutover:health` with a TTL of 60 s, because a primary that was demoted while it was
    /// alive still answers `PING` and reads. With an ACL, the service's user needs `~cutover:health +set`; without it
    /// the check warns. For a pool of replicas, which refuse writes, use [`Check::new`] with a probe of your own.
    ///
    /// As in [`Check::postgres`], the probe has its own connection outside the pool, and a pool that is used up is a
    /// warning. After a failure the probe connects again, so it follows a changed address.
    pub fn redis(pool: impl Into<RedisPool>) -> Self {
        let pool = pool.into();
        let idle = Arc::new(Mutex::new(None));
        Self::new("redis", move || probe(pool.clone(), Arc::clone(&idle)))
    }
}

async fn probe(pool: RedisPool, idle: Arc<Mutex<Option<AnyConnection>>>) -> Result<ProbeOutcome, CheckError> {
    // Taken out while in use, so a probe that fails or is cancelled drops the connection.
    let kept = idle.lock().await.take();
    let mut connection = match kept {
        Some(connection) => connection,
        None => pool.connect().await.map_err(|error| describe(&error))?,
    };
    let mut set = cmd("SET");
    let set = set.arg(KEY).arg(1).arg("EX").arg(KEY_TTL_SECONDS);
    let written = connection.req_packed_command(set).await.and_then(|answer| answer.extract_error());
    let refused = written.err().map(refusal).transpose()?;
    *idle.lock().await = Some(connection);
    Ok(refused.unwrap_or_else(|| ProbeOutcome::of_pool(pool.status())))
}

/// A warning for a missing privilege, otherwise the error.
fn refusal(error: RedisError) -> Result<ProbeOutcome, CheckError> {
    if !is_missing_privilege(&error) {
        return Err(describe(&error).into());
    }
    Ok(ProbeOutcome::Warn(format!(
        "reachable, but the user may not write the key {KEY}, so a read-only server would go unnoticed; \
         run: ACL SETUSER <user> ~{KEY} +set"
    )))
}
