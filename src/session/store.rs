//! The session store.

use std::fmt;
use std::future::Future;

use async_trait::async_trait;
use deadpool_redis::redis::{Cmd, ErrorKind, FromRedisValue, RedisError, ServerErrorKind, cmd};
use deadpool_redis::{Connection, Pool};
use prometheus::{IntCounter, Registry};
use time::OffsetDateTime;
use tower_sessions_core::SessionStore;
use tower_sessions_core::session::{Id, Record};
use tower_sessions_core::session_store::{Error, Result};

use super::envelope::{Base, Envelope};
use super::options::RedisStoreOptions;
use crate::config::ConfigError;

/// Attempts to create a record under a new id.
const CREATE_ATTEMPTS: usize = 16;

/// Writes a record unless it changed since it was read.
const COMPARE_AND_SET: &str = "if redis.call('GET', KEYS[1]) == ARGV[1] then \
                               redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) return 1 end return 0";

/// Sessions in Redis, for tower-sessions.
///
/// ```no_run
/// use axum::Router;
/// use cutover::session::{RedisStore, RedisStoreOptions};
/// use tower_sessions::{Expiry, SessionManagerLayer};
///
/// # fn app() -> Result<Router, Box<dyn std::error::Error>> {
/// let pool = deadpool_redis::Config::from_url("redis://127.0.0.1/").create_pool(None)?;
/// let store = RedisStore::new(pool, RedisStoreOptions::default())?;
/// let sessions = SessionManagerLayer::new(store)
///     .with_expiry(Expiry::OnInactivity(time::Duration::hours(1)));
/// let app = Router::new().layer(sessions);
/// # Ok(app)
/// # }
/// ```
///
/// # What builds keep of each other
///
/// A record is `{"v":1,"rev":…,"recent":[…],"expires":…,"data":{…}}`, under the prefix and the id of the session.
///
/// - Keys of the session that this build does not use, and fields beside `data` that it does not know, stay.
/// - Fields *inside* a value are different: a build that reads a struct and writes it back drops the fields that it does
///   not know, before the store sees them. Wrap such values in [`PreserveUnknown`](super::PreserveUnknown).
/// - Loading or saving a record of another format (`v`) is an error.
///
/// # Concurrent requests of one session
///
/// A save writes the keys that its request changed or removed since it loaded the session, into the current record, by
/// compare-and-set. So changes of different keys are all kept. For changes of the same key see
/// [`ConflictPolicy`](super::ConflictPolicy). A session that was deleted or expired in the meantime stays deleted, and
/// the save is an error. A request that *clears* a session replaces what others wrote.
///
/// A request may save more than once. The record remembers the keys that its last four writers changed. If more than
/// three other requests wrote in between, the first change of the request is taken for a change of another request.
///
/// For this, a loaded record has one more key, `$cutover`, which is never stored. Do not put a cache in front of the
/// store, because it would return records that no longer exist.
///
/// # Failover
///
/// A connection to a primary that was demoted stays open, and Redis refuses writes on it (`READONLY`). The store then
/// closes this connection and the idle ones of the pool, and runs the command once more on a new connection. So sessions
/// work again as soon as the pool's address leads to the new primary.
///
/// # Errors and cancel safety
///
/// Every operation ends within the time limit. A save that reaches it, or that is dropped, may or may not be stored; a
/// record is never half written. Errors do not contain the id of the session, because it is a secret.
#[derive(Clone)]
pub struct RedisStore {
    pool: Pool,
    options: RedisStoreOptions,
    conflicts: IntCounter,
}

impl RedisStore {
    /// A store that uses `pool`. It connects when it is first used.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with every unusable option.
    pub fn new(pool: Pool, options: RedisStoreOptions) -> std::result::Result<Self, ConfigError> {
        options.check()?;
        Ok(Self::from_parts(pool, options))
    }

    /// A store with the default options, which are always usable.
    pub(crate) fn with_defaults(pool: Pool) -> Self {
        Self::from_parts(pool, RedisStoreOptions::default())
    }

    fn from_parts(pool: Pool, options: RedisStoreOptions) -> Self {
        #[expect(clippy::expect_used, reason = "the name is a constant and valid")]
        let conflicts = IntCounter::new(
            "cutover_session_conflicts_total",
            "Session keys that two concurrent requests set to different values; the last write won.",
        )
        .expect("a valid metric");
        Self { pool, options, conflicts }
    }

    /// Registers `cutover_session_conflicts_total`. Clones of a store share the counter.
    ///
    /// # Errors
    ///
    /// Those of the registry, if the name is taken.
    pub fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        registry.register(Box::new(self.conflicts.clone()))
    }

    fn key(&self, id: &Id) -> String {
        format!("{}{id}", self.options.prefix)
    }

    async fn within<T>(&self, what: &str, operation: impl Future<Output = Result<T>>) -> Result<T> {
        let limit = self.options.time_limit;
        match tokio::time::timeout(limit, operation).await {
            Ok(outcome) => outcome,
            Err(_) => {
                Err(Error::Backend(format!("{what} a session took longer than the limit of {limit:?}")))
            }
        }
    }

    fn client(&self) -> Client<'_> {
        Client { pool: &self.pool, connection: None }
    }

    async fn get(&self, client: &mut Client<'_>, id: &Id) -> Result<Option<Vec<u8>>> {
        client.ask(cmd("GET").arg(self.key(id))).await
    }

    async fn try_save(&self, record: &Record) -> Result<()> {
        let mut data = record.data.clone();
        let base = Base::take(&mut data);
        let mut client = self.client();
        // Each failed attempt means that another save succeeded, and the time limit ends the loop.
        loop {
            let Some(before) = self.get(&mut client, &record.id).await? else {
                return Err(Error::Backend(
                    "the session was deleted or has expired since it was loaded; it is not saved".to_owned(),
                ));
            };
            let mut envelope = Envelope::decode(&before)?;
            let updated =
                envelope.update(data.clone(), base.as_ref(), record.expiry_date, self.options.on_conflict);
            let conflicts = updated.map_err(|_| {
                Error::Backend(
                    "another request changed the same key of the session; it is not saved".to_owned(),
                )
            })?;
            let swapped: bool = client
                .ask(
                    cmd("EVAL")
                        .arg(COMPARE_AND_SET)
                        .arg(1)
                        .arg(self.key(&record.id))
                        .arg(before)
                        .arg(envelope.encode()?)
                        .arg(time_to_live(record.expiry_date)),
                )
                .await?;
            if swapped {
                self.conflicts.inc_by(conflicts);
                return Ok(());
            }
        }
    }

    async fn try_create(&self, record: &mut Record) -> Result<()> {
        let mut data = record.data.clone();
        Base::take(&mut data);
        let envelope = Envelope::new(data, record.expiry_date);
        let stored = envelope.encode()?;
        let mut client = self.client();
        for _ in 0..CREATE_ATTEMPTS {
            let done: Option<String> = client
                .ask(
                    cmd("SET")
                        .arg(self.key(&record.id))
                        .arg(&stored)
                        .arg("NX")
                        .arg("PX")
                        .arg(time_to_live(record.expiry_date)),
                )
                .await?;
            if done.is_some() {
                return Base::of(&envelope).put(&mut record.data);
            }
            record.id = Id::default();
        }
        Err(Error::Backend(format!("found no free session id in {CREATE_ATTEMPTS} attempts")))
    }
}

#[async_trait]
impl SessionStore for RedisStore {
    async fn create(&self, record: &mut Record) -> Result<()> {
        self.within("creating", self.try_create(record)).await
    }

    async fn save(&self, record: &Record) -> Result<()> {
        self.within("saving", self.try_save(record)).await
    }

    async fn load(&self, id: &Id) -> Result<Option<Record>> {
        let load = async {
            let Some(stored) = self.get(&mut self.client(), id).await? else {
                return Ok(None);
            };
            let envelope = Envelope::decode(&stored)?;
            Ok(Some(Record { id: *id, expiry_date: envelope.expires()?, data: envelope.into_data()? }))
        };
        self.within("loading", load).await
    }

    async fn delete(&self, id: &Id) -> Result<()> {
        let delete = async { self.client().ask(cmd("DEL").arg(self.key(id))).await };
        self.within("deleting", delete).await
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the pool, because its address may contain a password.
        f.debug_struct("RedisStore").field("options", &self.options).finish_non_exhaustive()
    }
}

/// A connection of the pool, replaced if its server has become a replica.
struct Client<'a> {
    pool: &'a Pool,
    connection: Option<Connection>,
}

impl Client<'_> {
    async fn ask<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T> {
        match self.send(command).await? {
            Ok(answer) => Ok(answer),
            Err(error) if is_read_only(&error) => {
                tracing::warn!(%error, "Redis refuses writes because it is a replica; reconnecting");
                self.discard();
                let answer = self.send(command).await?;
                if answer.as_ref().is_err_and(is_read_only) {
                    self.discard();
                }
                answer.map_err(backend)
            }
            Err(error) => Err(backend(error)),
        }
    }

    async fn send<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<std::result::Result<T, RedisError>> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            empty => {
                let connection = self.pool.get().await;
                empty.insert(connection.map_err(|error| {
                    Error::Backend(format!("could not get a connection to Redis: {error}"))
                })?)
            }
        };
        Ok(command.query_async(connection).await)
    }

    /// Closes the connection and the idle ones of the pool, which lead to the same server.
    fn discard(&mut self) {
        if let Some(connection) = self.connection.take() {
            drop(Connection::take(connection));
        }
        self.pool.retain(|_, _| false);
    }
}

/// Whether the server refused a write because it is a replica. Inside a script, versions before 7 report it in the text
/// only.
fn is_read_only(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly)
        || error.detail().is_some_and(|detail| detail.contains("-READONLY"))
}

fn backend(error: RedisError) -> Error {
    Error::Backend(format!("Redis: {error}"))
}

/// In milliseconds. Redis refuses zero and values that overflow its clock.
fn time_to_live(expires: OffsetDateTime) -> i64 {
    const CENTURY: i128 = 100 * 365 * 24 * 3_600_000;
    let left = (expires - OffsetDateTime::now_utc()).whole_milliseconds();
    i64::try_from(left.clamp(1, CENTURY)).unwrap_or(1)
}
