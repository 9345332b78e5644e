use std::time::Duration;

use deadpool_redis::redis::{Value, cmd, from_redis_value};

use super::store::{MirrorStore, StoreError};
use crate::redis::{Client, RedisPool};

/// Stores a row unless the store has this version or a higher one. Versions stay below 2^53, so a Lua number holds them
/// exactly.
const PUT: &str = "local have = redis.call('HGET', KEYS[1], 'v') \
    if have and tonumber(have) >= tonumber(ARGV[1]) then return 0 end \
    redis.call('HSET', KEYS[1], 'v', ARGV[1]) \
    if ARGV[2] == '' then redis.call('HDEL', KEYS[1], 'b') else redis.call('HSET', KEYS[1], 'b', ARGV[2]) end \
    return 1";

/// Rows in a Redis. Each is a hash of its version (`v`) and its body (`b`), under `prefix` followed by the key.
///
/// It needs one server, or a primary behind Sentinel: a cluster has no list of all keys, which a comparison reads.
/// The server must not evict these keys. Configure its durability (`appendfsync`, `WAIT`) as the data requires.
#[derive(Clone)]
pub struct RedisMirror {
    pool: RedisPool,
    prefix: String,
    limit: Duration,
}

impl RedisMirror {
    /// A store under this prefix. `limit` is the time limit of each operation, including the wait for a connection.
    pub fn new(pool: impl Into<RedisPool>, prefix: &str, limit: Duration) -> Self {
        Self { pool: pool.into(), prefix: prefix.to_owned(), limit }
    }

    fn name(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn client(&self) -> Client<'_> {
        Client::new(&self.pool, self.limit)
    }
}

impl std::fmt::Debug for RedisMirror {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisMirror").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl MirrorStore for RedisMirror {
    async fn prepare(&self) -> Result<(), StoreError> {
        // A pool for a cluster asks every server and returns a map of their answers.
        let info = self.client().ask::<Value>(cmd("INFO").arg("cluster")).await;
        let is_cluster = info.is_ok_and(|info| match from_redis_value::<String>(info) {
            Ok(text) => text.contains("cluster_enabled:1"),
            Err(_) => true,
        });
        if is_cluster {
            return Err("the Redis of a mirror is a cluster, which has no list of all keys; \
                        use one server, or a primary behind Sentinel"
                .into());
        }
        Ok(())
    }

    async fn is_prepared(&self) -> Result<bool, StoreError> {
        Ok(true)
    }

    async fn put(&self, key: &str, version: i64, row: Option<&str>) -> Result<bool, StoreError> {
        let mut put = cmd("EVAL");
        put.arg(PUT).arg(1).arg(self.name(key)).arg(version).arg(row.unwrap_or_default());
        // Not repeated after a broken connection, because the second answer would be that the store has this version.
        let kept: i64 = self.client().ask(&put).await?;
        Ok(kept == 1)
    }

    async fn get(&self, key: &str) -> Result<Option<String>, StoreError> {
        Ok(self.client().repeat(cmd("HGET").arg(self.name(key)).arg("b")).await?)
    }

    async fn keys(&self, cursor: Option<&str>) -> Result<(Vec<String>, Option<String>), StoreError> {
        // Characters with a meaning in patterns are escaped.
        let literal: String = self
            .prefix
            .chars()
            .flat_map(|c| "*?[]\\^".contains(c).then_some('\\').into_iter().chain([c]))
            .collect();
        let mut scan = cmd("SCAN");
        scan.arg(cursor.unwrap_or("0")).arg("MATCH").arg(format!("{literal}*")).arg("COUNT").arg(1_000);
        let (next, names): (String, Vec<String>) = self.client().ask(&scan).await?;
        let keys = names.iter().filter_map(|name| name.strip_prefix(&self.prefix)).map(str::to_owned);
        Ok((keys.collect(), Some(next).filter(|next| next != "0")))
    }
}
