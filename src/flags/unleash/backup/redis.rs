//! The last state in Redis.

use async_trait::async_trait;
use bytes::Bytes;
use deadpool_redis::Pool;
use deadpool_redis::redis::cmd;

use super::{Backup, BackupError, seal};

/// The last state in Redis, under one key, without an expiry.
///
/// It is as durable as that Redis: after a flush, the next instance to start finds no state.
#[derive(Clone)]
pub struct RedisBackup {
    pool: Pool,
    key: String,
}

impl RedisBackup {
    /// `key` should contain the service and the environment, such as `flags:payments:production`.
    pub fn new(pool: Pool, key: impl Into<String>) -> Self {
        Self { pool, key: key.into() }
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
        let mut connection = self.pool.get().await.map_err(BackupError::place)?;
        // One byte more than the limit, so that a larger value is noticed.
        let mut part = cmd("GETRANGE");
        let part = part.arg(&self.key).arg(0).arg(seal::LARGEST_SEALED);
        let body: Vec<u8> = part.query_async(&mut connection).await.map_err(BackupError::place)?;
        if body.is_empty() { Ok(None) } else { seal::within(body).map(Some) }
    }

    async fn save(&self, state: Bytes) -> Result<(), BackupError> {
        let mut connection = self.pool.get().await.map_err(BackupError::place)?;
        let mut set = cmd("SET");
        let set = set.arg(&self.key).arg(&*state);
        set.query_async(&mut connection).await.map_err(BackupError::place)
    }
}
