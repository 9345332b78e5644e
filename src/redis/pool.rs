//! Pools of any kind of Redis, behind one type.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use deadpool::Status;
use deadpool::managed::{self, Manager, Object, PoolError};
use deadpool_redis::redis::RedisError;
use deadpool_redis::redis::aio::ConnectionLike;

use super::refusal::describe;

/// A connection of any kind of pool.
pub(crate) type AnyConnection = Box<dyn ConnectionLike + Send>;

/// A pool of connections to Redis, of any of the kinds that `deadpool-redis` has.
///
/// It is made from such a pool by `into()`, and every function that takes a Redis pool accepts the pool itself:
///
/// | Redis | pool | cargo feature of `deadpool-redis` |
/// |---|---|---|
/// | one server, or a DNS name or proxy that leads to the primary | `deadpool_redis::Pool` | |
/// | a primary that Sentinel watches | `deadpool_redis::sentinel::Pool` | `sentinel` |
/// | a cluster | `deadpool_redis::cluster::Pool` | `cluster` |
///
/// A clone uses the same connections.
///
/// ```no_run
/// use cutover::Cutover;
/// use deadpool_redis::sentinel::{Config, SentinelServerType};
///
/// # fn service() -> Result<Cutover, Box<dyn std::error::Error>> {
/// let sentinels = vec!["redis://sentinel-0:26379".to_owned(), "redis://sentinel-1:26379".to_owned()];
/// let redis = Config::from_urls(sentinels, "primary".to_owned(), SentinelServerType::Master);
/// let pool = redis.create_pool(Some(deadpool_redis::Runtime::Tokio1))?;
/// let service = Cutover::service("payments").redis(pool);
/// # Ok(service)
/// # }
/// ```
#[derive(Clone)]
pub struct RedisPool(Arc<dyn Connect>);

impl RedisPool {
    /// The pool of one server that this one was made from; `None` if it was made from another kind.
    pub(crate) fn single_server(&self) -> Option<deadpool_redis::Pool> {
        self.0.as_any().downcast_ref().cloned()
    }

    /// A connection of the pool; the error is for people.
    pub(super) async fn get(&self) -> Result<AnyConnection, String> {
        self.0.get().await.map_err(|error| match error {
            PoolError::Backend(error) => format!("could not connect to Redis: {}", describe(&error)),
            error => format!("could not get a connection to Redis: {error}"),
        })
    }

    /// A connection outside of the pool.
    pub(crate) async fn connect(&self) -> Result<AnyConnection, RedisError> {
        self.0.connect().await
    }

    pub(super) fn close_idle(&self) {
        self.0.close_idle();
    }

    pub(crate) fn status(&self) -> Status {
        self.0.status()
    }
}

impl fmt::Debug for RedisPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without its manager, because addresses may contain a password.
        f.debug_struct("RedisPool").field("status", &self.status()).finish_non_exhaustive()
    }
}

impl<M, W> From<managed::Pool<M, W>> for RedisPool
where
    M: Manager<Error = RedisError> + 'static,
    M::Type: ConnectionLike + 'static,
    W: From<Object<M>> + ConnectionLike + Send + 'static,
{
    fn from(pool: managed::Pool<M, W>) -> Self {
        Self(Arc::new(pool))
    }
}

impl<M, W> From<&managed::Pool<M, W>> for RedisPool
where
    M: Manager<Error = RedisError> + 'static,
    M::Type: ConnectionLike + 'static,
    W: From<Object<M>> + ConnectionLike + Send + 'static,
{
    fn from(pool: &managed::Pool<M, W>) -> Self {
        pool.clone().into()
    }
}

impl From<&RedisPool> for RedisPool {
    fn from(pool: &RedisPool) -> Self {
        pool.clone()
    }
}

#[async_trait]
trait Connect: Send + Sync {
    async fn get(&self) -> Result<AnyConnection, PoolError<RedisError>>;
    async fn connect(&self) -> Result<AnyConnection, RedisError>;
    fn close_idle(&self);
    fn status(&self) -> Status;
    fn as_any(&self) -> &dyn Any;
}

#[async_trait]
impl<M, W> Connect for managed::Pool<M, W>
where
    M: Manager<Error = RedisError> + 'static,
    M::Type: ConnectionLike + 'static,
    W: From<Object<M>> + ConnectionLike + Send + 'static,
{
    async fn get(&self) -> Result<AnyConnection, PoolError<RedisError>> {
        Ok(Box::new(managed::Pool::get(self).await?))
    }

    async fn connect(&self) -> Result<AnyConnection, RedisError> {
        Ok(Box::new(self.manager().create().await?))
    }

    fn close_idle(&self) {
        self.retain(|_, _| false);
    }

    fn status(&self) -> Status {
        managed::Pool::status(self)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
