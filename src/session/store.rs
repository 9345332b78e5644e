//! The store.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use async_trait::async_trait;
use deadpool_redis::redis::{FromRedisValue, cmd};
use deadpool_redis::{Connection, Pool};
use time::OffsetDateTime;
use tower_sessions_core::SessionStore;
use tower_sessions_core::session::{Id, Record};
use tower_sessions_core::session_store::{Error, Result};

use super::envelope::{Base, Envelope};
use super::error::SessionError;

/// Tries to write a record that others write too. Each try that fails means that another one
/// succeeded.
const TRIES: usize = 16;

/// Writes if nobody else has since.
const SWAP: &str = "if redis.call('GET', KEYS[1]) == ARGV[1] then \
                    redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) return 1 end return 0";

/// How sessions are kept.
#[derive(Clone, Debug)]
pub struct RedisStoreOptions {
    /// Begins each key. Default `session:`.
    pub prefix: String,
    /// Time limit of each operation, waiting for a connection included. Default 1 s.
    pub time_limit: Duration,
    /// What happens when two requests gave one key different values. Default
    /// [`ConflictPolicy::Refuse`].
    pub same_key: ConflictPolicy,
}

impl Default for RedisStoreOptions {
    fn default() -> Self {
        Self {
            prefix: "session:".to_owned(),
            time_limit: Duration::from_secs(1),
            same_key: ConflictPolicy::Refuse,
        }
    }
}

/// What happens when two requests of one session, at the same time, gave one key different values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConflictPolicy {
    /// The later save is an error, and its request a 500: nothing is lost without anybody
    /// knowing.
    Refuse,
    /// The later save wins. For values of which the last one is as good as any, such as "last
    /// seen".
    LastWins,
}

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
/// # What is kept between builds
///
/// A record is `{"v":1,"rev":…,"recent":[…],"expires":…,"data":{…}}`, under `prefix` and the session's id.
///
/// - Keys of the session that this build doesn't use, and fields beside `data` that it doesn't know,
///   stay as they are.
/// - Fields *inside* a value: a build that reads a struct and writes it back drops those that it
///   doesn't know, before they get here. Wrap such values in [`PreserveUnknown`](super::PreserveUnknown).
/// - A record of another format (`v`) is refused with an error, by loading and saving alike.
///
/// # Requests of one session at the same time
///
/// A save writes the keys that its request changed or removed since it loaded the session, into the
/// record as it is then, by compare-and-set. Changes of different keys thus all stay. For changes of
/// the same key see [`ConflictPolicy`]. A session that was deleted or has expired meanwhile is not brought
/// back: the save is an error. A request that *clears* a session replaces what others wrote.
///
/// A request may save by hand, go on, and save again: the record remembers the keys that its last
/// four writers changed. When more than three others wrote in between, its own first change looks
/// like somebody else's.
///
/// For this a loaded record carries one more key, `$cutover`, which is never stored. Don't put a
/// cache in front of the store: it would answer with what is no longer there.
///
/// # Errors and cancellation
///
/// Every operation ends within the time limit; a save that ran into it may or may not have been
/// done. The same holds for one that is dropped; a record is never half-written. Errors don't name
/// the session: its id is a secret.
#[derive(Clone)]
pub struct RedisStore {
    pool: Pool,
    options: RedisStoreOptions,
}

impl RedisStore {
    /// A store over a pool; connects when first used.
    ///
    /// # Errors
    ///
    /// [`SessionError`] with everything that is wrong with the options.
    pub fn new(pool: Pool, options: RedisStoreOptions) -> std::result::Result<Self, SessionError> {
        let mut problems = Vec::new();
        if options.prefix.is_empty() {
            let text = "`prefix` must not be empty: others may use this Redis, `session:` is usual";
            problems.push(text.to_owned());
        }
        if options.time_limit.is_zero() {
            problems.push("`time_limit` must be longer than zero".to_owned());
        }
        if !problems.is_empty() {
            return Err(SessionError(problems));
        }
        Ok(Self { pool, options })
    }

    /// A store with the default options, with which nothing can be wrong.
    pub(crate) fn with_defaults(pool: Pool) -> Self {
        Self { pool, options: RedisStoreOptions::default() }
    }

    fn key(&self, id: &Id) -> String {
        format!("{}{id}", self.options.prefix)
    }

    async fn within<T>(&self, what: &str, operation: impl Future<Output = Result<T>>) -> Result<T> {
        let limit = self.options.time_limit;
        match tokio::time::timeout(limit, operation).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Error::Backend(format!("{what} a session: Redis did not answer within {limit:?}"))),
        }
    }

    async fn connection(&self) -> Result<Connection> {
        let connection = self.pool.get().await;
        connection.map_err(|error| Error::Backend(format!("no connection to Redis: {error}")))
    }

    async fn get(&self, connection: &mut Connection, id: &Id) -> Result<Option<Vec<u8>>> {
        ask(connection, cmd("GET").arg(self.key(id))).await
    }

    async fn try_save(&self, record: &Record) -> Result<()> {
        let mut data = record.data.clone();
        let base = Base::take(&mut data);
        let refuse = self.options.same_key == ConflictPolicy::Refuse;
        let mut connection = self.connection().await?;
        for _ in 0..TRIES {
            let Some(before) = self.get(&mut connection, &record.id).await? else {
                return Err(Error::Backend(
                    "the session was deleted or has expired meanwhile: not saved".to_owned(),
                ));
            };
            let mut envelope = Envelope::decode(&before)?;
            envelope.update(data.clone(), base.as_ref(), record.expiry_date, refuse).map_err(|_| {
                Error::Backend("another request changed the same key of the session: not saved".to_owned())
            })?;
            let swapped: bool = ask(
                &mut connection,
                cmd("EVAL")
                    .arg(SWAP)
                    .arg(1)
                    .arg(self.key(&record.id))
                    .arg(before)
                    .arg(envelope.encode()?)
                    .arg(time_to_live(record.expiry_date)),
            )
            .await?;
            if swapped {
                return Ok(());
            }
        }
        Err(busy())
    }

    async fn try_create(&self, record: &mut Record) -> Result<()> {
        let mut data = record.data.clone();
        Base::take(&mut data);
        let envelope = Envelope::new(data, record.expiry_date);
        let stored = envelope.encode()?;
        let mut connection = self.connection().await?;
        for _ in 0..TRIES {
            let done: Option<String> = ask(
                &mut connection,
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
        Err(busy())
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
            let mut connection = self.connection().await?;
            let Some(stored) = self.get(&mut connection, id).await? else {
                return Ok(None);
            };
            let envelope = Envelope::decode(&stored)?;
            Ok(Some(Record { id: *id, expiry_date: envelope.expires()?, data: envelope.into_data()? }))
        };
        self.within("loading", load).await
    }

    async fn delete(&self, id: &Id) -> Result<()> {
        let delete = async {
            let mut connection = self.connection().await?;
            ask(&mut connection, cmd("DEL").arg(self.key(id))).await
        };
        self.within("deleting", delete).await
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the pool: its address may have a password in it.
        f.debug_struct("RedisStore").field("options", &self.options).finish_non_exhaustive()
    }
}

async fn ask<T: FromRedisValue>(
    connection: &mut Connection,
    command: &deadpool_redis::redis::Cmd,
) -> Result<T> {
    let answer = command.query_async(connection).await;
    answer.map_err(|error| Error::Backend(format!("Redis: {error}")))
}

fn busy() -> Error {
    Error::Backend(format!("a session that others write all the time: gave up after {TRIES} tries"))
}

/// In milliseconds. Redis refuses zero and what doesn't fit its clock.
fn time_to_live(expires: OffsetDateTime) -> i64 {
    const CENTURY: i128 = 100 * 365 * 24 * 3_600_000;
    let left = (expires - OffsetDateTime::now_utc()).whole_milliseconds();
    i64::try_from(left.clamp(1, CENTURY)).unwrap_or(1)
}
