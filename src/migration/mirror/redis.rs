use std::time::Duration;

use deadpool_redis::Pool;
use deadpool_redis::redis::cmd;
use tokio::time::timeout;

use super::store::{MirrorStore, StoreError};

/// Stores a row unless the store has this version or a higher one. Versions stay below 2^53, so a Lua number holds them
/// exactly.
const PUT: &str = "local have = redis.call('HGET', KEYS[1], 'v') \
    if have and tonumber(have) >= tonumber(ARGV[1]) then return 0 end \
    redis.call('HSET', KEYS[1], 'v', ARGV[1]) \
    if ARGV[2] == '' then redis.call('HDEL', KEYS[1], 'b') else redis.call('HSET', KEYS[1], 'b', ARGV[2]) end \
    return 1";

/// Rows in a Redis. Each is a hash of its version (`v`) and its body (`b`), under `prefix` followed by the key.
///
/// The server must not evict these keys. Configure its durability (`appendfsync`, `WAIT`) as the data requires.
#[derive(Clone)]
pub struct RedisMirror {
    pool: Pool,
    prefix: String,
    limit: Duration,
}

impl RedisMirror {
    /// A store under this prefix. `limit` is the time limit of each operation, including the wait for a connection.
    pub fn new(pool: Pool, prefix: &str, limit: Duration) -> Self {
        Self { pool, prefix: prefix.to_owned(), limit }
    }

    fn name(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    async fn within<T>(
        &self,
        work: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        timeout(self.limit, work)
            .await
            .map_err(|_| format!("Redis did not answer within {:?}", self.limit))?
    }
}

impl std::fmt::Debug for RedisMirror {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisMirror").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl MirrorStore for RedisMirror {
    async fn prepare(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn is_prepared(&self) -> Result<bool, StoreError> {
        Ok(true)
    }

    async fn put(&self, key: &str, version: i64, row: Option<&str>) -> Result<bool, StoreError> {
        self.within(async {
            let mut connection = self.pool.get().await?;
            let mut put = cmd("EVAL");
            put.arg(PUT).arg(1).arg(self.name(key)).arg(version).arg(row.unwrap_or_default());
            let kept: i64 = put.query_async(&mut connection).await?;
            Ok(kept == 1)
        })
        .await
    }

    async fn get(&self, key: &str) -> Result<Option<String>, StoreError> {
        self.within(async {
            let mut connection = self.pool.get().await?;
            Ok(cmd("HGET").arg(self.name(key)).arg("b").query_async(&mut connection).await?)
        })
        .await
    }

    async fn keys(&self, cursor: Option<&str>) -> Result<(Vec<String>, Option<String>), StoreError> {
        self.within(async {
            let mut connection = self.pool.get().await?;
            // Characters with a meaning in patterns are escaped.
            let literal: String = self
                .prefix
                .chars()
                .flat_map(|c| "*?[]\\^".contains(c).then_some('\\').into_iter().chain([c]))
                .collect();
            let (next, names): (String, Vec<String>) = cmd("SCAN")
                .arg(cursor.unwrap_or("0"))
                .arg("MATCH")
                .arg(format!("{literal}*"))
                .arg("COUNT")
                .arg(1_000)
                .query_async(&mut connection)
                .await?;
            let keys = names.iter().filter_map(|name| name.strip_prefix(&self.prefix)).map(str::to_owned);
            Ok((keys.collect(), Some(next).filter(|next| next != "0")))
        })
        .await
    }
}
