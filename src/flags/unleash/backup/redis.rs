//! The last state in Redis.

use async_trait::async_trait;
use bytes::Bytes;
use std::time::Duration;

use deadpool_redis::redis::cmd;

use super::{Backup, BackupError, seal};
use crate::redis::{Client, RedisPool};

/// The caller's own time limit is usually shorter.
const LIMIT: Duration = Duration::from_secs(10);

/// The last state in Redis, under one key, without an expiry.
///
/// It is as durable as that Redis: after a flush, the next instance to start finds no state.
#[derive(Clone)]
pub struct RedisBackup {
    pool: RedisPool,
    key: String,
}

impl RedisBackup {
    /// `key` should contain the service and the environment, such as `flags:payments:production`.
    pub fn new(pool: impl Into<RedisPool>, key: impl Into<String>) -> Self {
        Self { pool: pool.into(), key: key.into() }
    }
}

impl std::fmt::Debug for RedisBackup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisBackup").field("key", &self.key).finish_non_exhaustive()
    }
}

#[async_trait]
impl Backup for RedisBackup {
    async fn load(&self) -> Result<Option<Bytes>, BackupError> {
        // One byte more than the limit, so that a larger value is noticed.
        let mut part = cmd("GETRANGE");
        let part = part.arg(&self.key).arg(0).arg(seal::LARGEST_SEALED);
        let body: Vec<u8> = Client::new(&self.pool, LIMIT).repeat(part).await.map_err(BackupError::place)?;
        if body.is_empty() { Ok(None) } else { seal::within(body).map(Some) }
    }

    async fn save(&self, state: Bytes) -> Result<(), BackupError> {
        let mut set = cmd("SET");
        let set = set.arg(&self.key).arg(&*state);
        Client::new(&self.pool, LIMIT).repeat(set).await.map_err(BackupError::place)
    }
}
