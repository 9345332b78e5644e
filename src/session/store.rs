//! The session store.

use std::fmt;

use async_trait::async_trait;
use deadpool_redis::redis::cmd;
use prometheus::{IntCounter, Registry};
use time::OffsetDateTime;
use tower_sessions_core::SessionStore;
use tower_sessions_core::session::{Id, Record};
use tower_sessions_core::session_store::{Error, Result};

use super::envelope::{Base, Envelope};
use super::options::RedisStoreOptions;
use crate::config::ConfigError;
use crate::redis::{Client, Failure, RedisPool};

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
/// closes this connection and the idle ones of the pool, and repeats the command on a new connection within the time limit.
/// So sessions work again as soon as the pool leads to the new primary: by its address, by Sentinel, or by the cluster's
/// own redirections (see [`RedisPool`]). After a connection broke in the middle of a save, the store reads the record to
/// find out whether it was saved.
///
/// # Errors and cancel safety
///
/// Every operation ends within the time limit. A save that reaches it, or that is dropped, may or may not be stored; a
/// record is never half written. Errors do not contain the id of the session, because it is a secret.
#[derive(Clone)]
pub struct RedisStore {
    pool: RedisPool,
    options: RedisStoreOptions,
    conflicts: IntCounter,
}

impl RedisStore {
    /// A store that uses `pool`. It connects when it is first used.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with every unusable option.
    pub fn new(
        pool: impl Into<RedisPool>,
        options: RedisStoreOptions,
    ) -> std::result::Result<Self, ConfigError> {
        options.check()?;
        Ok(Self::from_parts(pool.into(), options))
    }

    /// A store for the sessions of one service, whose keys have the service's name. Its options are always usable.
    pub(crate) fn of_service(pool: RedisPool, service: &str) -> Self {
        let prefix = format!("session:{service}:");
        Self::from_parts(pool, RedisStoreOptions { prefix, ..RedisStoreOptions::default() })
    }

    fn from_parts(pool: RedisPool, options: RedisStoreOptions) -> Self {
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

    fn client(&self) -> Client<'_> {
        Client::new(&self.pool, self.options.time_limit)
    }

    async fn get(&self, client: &mut Client<'_>, id: &Id) -> std::result::Result<Option<Vec<u8>>, Failure> {
        client.repeat(cmd("GET").arg(self.key(id))).await
    }

    async fn try_save(&self, record: &Record) -> Result<()> {
        let failed = |failure| failed("saving", &failure);
        let mut data = record.data.clone();
        let base = Base::take(&mut data);
        let mut client = self.client();
        // What a broken connection may or may not have stored.
        let mut sent = None;
        // Each failed attempt means that another save succeeded, or that a connection broke, and the time limit ends the loop.
        loop {
            let Some(before) = self.get(&mut client, &record.id).await.map_err(failed)? else {
                return Err(Error::Backend(
                    "the session was deleted or has expired since it was loaded; it is not saved".to_owned(),
                ));
            };
            if let Some((stored, conflicts)) = sent.take()
                && stored == before
            {
                self.conflicts.inc_by(conflicts);
                return Ok(());
            }
            let mut envelope = Envelope::decode(&before)?;
            let updated =
                envelope.update(data.clone(), base.as_ref(), record.expiry_date, self.options.on_conflict);
            let conflicts = updated.map_err(|_| {
                Error::Backend(
                    "another request changed the same key of the session; it is not saved".to_owned(),
                )
            })?;
            let after = envelope.encode()?;
            let mut swap = cmd("EVAL");
            swap.arg(COMPARE_AND_SET).arg(1).arg(self.key(&record.id)).arg(before).arg(&after);
            match client.ask(swap.arg(time_to_live(record.expiry_date))).await {
                Ok(true) => {
                    self.conflicts.inc_by(conflicts);
                    return Ok(());
                }
                Ok(false) => {}
                Err(failure) if failure.is_unknown => sent = Some((after, conflicts)),
                Err(failure) => return Err(failed(failure)),
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
            let mut set = cmd("SET");
            set.arg(self.key(&record.id))
                .arg(&stored)
                .arg("NX")
                .arg("PX")
                .arg(time_to_live(record.expiry_date));
            match client.ask::<Option<String>>(&set).await {
                Ok(Some(_)) => return Base::of(&envelope).put(&mut record.data),
                Ok(None) => {}
                // It may be stored under this id, which was never returned, until it expires.
                Err(failure) if failure.is_unknown => {}
                Err(failure) => return Err(failed("creating", &failure)),
            }
            record.id = Id::default();
        }
        Err(Error::Backend(format!("found no free session id in {CREATE_ATTEMPTS} attempts")))
    }
}

#[async_trait]
impl SessionStore for RedisStore {
    async fn create(&self, record: &mut Record) -> Result<()> {
        self.try_create(record).await
    }

    async fn save(&self, record: &Record) -> Result<()> {
        self.try_save(record).await
    }

    async fn load(&self, id: &Id) -> Result<Option<Record>> {
        let stored = self.get(&mut self.client(), id).await;
        let Some(stored) = stored.map_err(|failure| failed("loading", &failure))? else {
            return Ok(None);
        };
        let envelope = Envelope::decode(&stored)?;
        Ok(Some(Record { id: *id, expiry_date: envelope.expires()?, data: envelope.into_data()? }))
    }

    async fn delete(&self, id: &Id) -> Result<()> {
        let deleted = self.client().repeat(cmd("DEL").arg(self.key(id))).await;
        deleted.map_err(|failure| failed("deleting", &failure))
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the pool, because its address may contain a password.
        f.debug_struct("RedisStore").field("options", &self.options).finish_non_exhaustive()
    }
}

fn failed(what: &str, failure: &Failure) -> Error {
    Error::Backend(format!("{what} a session: {failure}"))
}

/// In milliseconds. Redis refuses zero and values that overflow its clock.
fn time_to_live(expires: OffsetDateTime) -> i64 {
    const CENTURY: i128 = 100 * 365 * 24 * 3_600_000;
    let left = (expires - OffsetDateTime::now_utc()).whole_milliseconds();
    i64::try_from(left.clamp(1, CENTURY)).unwrap_or(1)
}
