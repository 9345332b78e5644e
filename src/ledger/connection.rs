use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPool, PgRow};
use sqlx::{Connection, Executor, FromRow, PgConnection, PgTransaction};
use tokio::time::{sleep, timeout};

use super::connections::Connections;
use super::error::LedgerError;
use super::notifications::{Notifications, Subscription};
use super::pooler::{self, Pooler};
use super::refusals::check_session;
use super::schema::{self, SCHEMA_VERSION, Step};
use super::transaction::{WORK, begin};
use super::unprepared;
use crate::config::remember_password;

/// How long a first connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// How every transaction on the ledger begins. A process that is paused or cut off in the middle holds its locks for a few
/// seconds at most: the server ends its transaction, and others do not wait long for what it holds. See [`WORK`] for `jit`.
const BEGIN: &str = "begin isolation level read committed; set local lock_timeout = '2s'; \
    set local idle_in_transaction_session_timeout = '3s'; set local jit = off";

/// How often an upgrade is tried when a writer's transaction blocks it, and the pause in milliseconds between two attempts. With
/// the time that each attempt waits for locks, this is about a quarter of a minute.
const ATTEMPTS: u32 = 30;
const BACKOFF: std::ops::Range<u64> = 200..400;

/// A handle on the tables in schema `cutover`.
///
/// It has at most four connections of its own, made with the service's options, because the renewal of a lease must not wait
/// in the queue of a busy pool. Clones share them, so several fleets or instances in one process need no more.
#[derive(Clone)]
pub struct Ledger {
    inner: Arc<Inner>,
}

struct Inner {
    connections: Arc<Connections>,
    listening: Subscription,
    pooler: Option<Pooler>,
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The options may hold a password.
        f.debug_struct("Ledger").field("pool", &self.pool()).finish_non_exhaustive()
    }
}

impl Ledger {
    /// Connects with `options`, installs the schema if it is missing, upgrades it if it is older than this library needs, and
    /// checks that this library can work with it.
    ///
    /// Several processes, and two versions of the library, may do so at the same time. A role that may not create a schema is
    /// enough if the schema is installed already.
    ///
    /// # Errors
    ///
    /// Any [`LedgerError`] except [`LedgerError::Config`]. Nothing has changed then.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: dropping the future rolls the installation back.
    pub async fn open(options: PgConnectOptions) -> Result<Self, LedgerError> {
        Self::connect(options, true, None).await
    }

    /// Like [`Ledger::open`], as a library would that has one more step than this one. For tests of an upgrade.
    ///
    /// # Errors
    ///
    /// As [`Ledger::open`].
    #[doc(hidden)]
    pub async fn open_with_step(options: PgConnectOptions, next: Step) -> Result<Self, LedgerError> {
        Self::connect(options, true, Some(next)).await
    }

    /// Like [`Ledger::existing`], as a library would that has one more step than this one. For tests of an upgrade.
    ///
    /// # Errors
    ///
    /// As [`Ledger::existing`].
    #[doc(hidden)]
    pub async fn existing_with_step(options: PgConnectOptions, next: Step) -> Result<Self, LedgerError> {
        Self::connect(options, false, Some(next)).await
    }

    /// Like [`Ledger::open`], but a missing schema is [`LedgerError::Missing`] and an old one [`LedgerError::Older`].
    ///
    /// # Errors
    ///
    /// Any [`LedgerError`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it only reads.
    pub async fn existing(options: PgConnectOptions) -> Result<Self, LedgerError> {
        Self::connect(options, false, None).await
    }

    /// Whether [`Ledger::open`] with these options could install the schema that [`Ledger::existing`] reports as missing, or
    /// upgrade the one that it reports as older.
    ///
    /// # Errors
    ///
    /// [`LedgerError::NotInstalled`] or [`LedgerError::NotUpgraded`] if this role may not, [`LedgerError::Database`],
    /// [`LedgerError::Timeout`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it only reads.
    pub async fn can_install(options: &PgConnectOptions) -> Result<(), LedgerError> {
        let mut connection = connected(options).await?;
        let mut tx = connection.begin().await?;
        let (may_create, role): (bool, String) = unprepared::query_as(
            "select has_database_privilege(current_database(), 'create'), current_user::text",
        )
        .fetch_one(&mut *tx)
        .await?;
        let found = schema::version(&mut tx).await?.map(|version| version.number);
        let owns: Option<bool> = unprepared::query_scalar(
            "select pg_has_role(tableowner, 'usage') from pg_tables where schemaname = 'cutover' and tablename = 'ledger'",
        )
        .fetch_optional(&mut *tx)
        .await?;
        tx.rollback().await?;
        connection.close().await?;
        match found {
            None if !may_create => Err(LedgerError::NotInstalled { role }),
            Some(found) if owns != Some(true) => {
                Err(LedgerError::NotUpgraded { role, found, needs: SCHEMA_VERSION })
            }
            _ => Ok(()),
        }
    }

    async fn connect(
        options: PgConnectOptions,
        may_install: bool,
        next: Option<Step>,
    ) -> Result<Self, LedgerError> {
        let mut options = options.statement_cache_capacity(0);
        // The pool guard tells the ledger's connections from others by this name. If the user has set a name, it counts
        // them twice, which errs on the safe side.
        if options.get_application_name().is_none() {
            options = options.application_name("cutover-ledger");
        }
        let pooler = prepare(&options, may_install, next).await?;
        let keeps_sessions = pooler.is_none_or(Pooler::keeps_sessions);
        let connections = Arc::new(Connections::new(options, pooler.is_none()));
        let listening = Subscription::new(keeps_sessions);
        Ok(Self { inner: Arc::new(Inner { connections, listening, pooler }) })
    }

    /// The pooler that the connections go through, if there is one.
    pub(crate) fn pooler(&self) -> Option<Pooler> {
        self.inner.pooler
    }

    /// Grants a role the rights on the ledger that an instance needs at run time, and no others.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Database`] if the role does not exist, or the current role may not grant.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it grants all rights or none.
    pub async fn grant(&self, role: &str) -> Result<(), LedgerError> {
        let role = format!("\"{}\"", role.replace('"', "\"\""));
        let mut tx = self.begin().await?;
        tx.execute(sqlx::AssertSqlSafe(format!(
            "grant usage on schema cutover to {role}; \
             grant select, insert, update, delete on all tables in schema cutover to {role}; \
             grant usage on all sequences in schema cutover to {role}; \
             grant execute on all functions in schema cutover to {role}; \
             revoke insert, update, delete on cutover.ledger from {role}; \
             revoke update, delete on cutover.history from {role}"
        )))
        .await?;
        tx.commit().await?;
        Ok(())
    }

    /// Begins a transaction on the ledger.
    ///
    /// A single query needs one too: behind a pooler in transaction mode, the preparation of a statement and its execution
    /// could otherwise reach different sessions.
    pub(crate) async fn begin(&self) -> Result<PgTransaction<'static>, sqlx::Error> {
        begin(&self.pool(), BEGIN).await
    }

    /// See [`Connections::ask`].
    pub(crate) async fn ask<T>(&self, statement: String) -> Result<Vec<T>, sqlx::Error>
    where
        T: for<'r> FromRow<'r, PgRow>,
    {
        self.inner.connections.ask(statement).await
    }

    /// Subscribes to changes of the fleet's migrations.
    pub(crate) fn notices(&self, fleet: &str) -> Notifications {
        self.inner.listening.follow(&self.inner.connections, fleet)
    }

    pub(crate) fn pool(&self) -> Arc<PgPool> {
        self.inner.connections.pool()
    }

    /// See [`Connections::reconnect`].
    pub(crate) fn reconnect(&self) {
        self.inner.connections.reconnect();
    }

    /// An error of the ledger as text, with why the server refuses connections or writes, if that was found out.
    pub(crate) fn explained(&self, error: impl fmt::Display) -> String {
        match self.inner.connections.refusal() {
            Some(refusal) => format!("{error}; {refusal}"),
            None => error.to_string(),
        }
    }
}

/// Makes sure that the schema has the version that is needed, or one that is compatible with this library, and returns the
/// pooler that the connections go through.
async fn prepare(
    options: &PgConnectOptions,
    may_install: bool,
    next: Option<Step>,
) -> Result<Option<Pooler>, LedgerError> {
    // Not from the pool: a pool retries a refused connection and then reports a timeout only. And processes that
    // install at the same time wait for each other for longer than other transactions may.
    let (mut connection, is_direct) = marked(options).await?;
    let mut attempt = 1;
    while let Err(error) = ensure(&mut connection, may_install, next).await {
        if !matches!(error, LedgerError::Busy) || attempt == ATTEMPTS {
            return Err(error);
        }
        attempt += 1;
        sleep(Duration::from_millis(fastrand::u64(BACKOFF))).await;
    }
    connection.close().await?;
    let pooler = if is_direct { None } else { Some(within_limit(pooler::mode(options)).await?) };
    if let Some(pooler) = pooler {
        tracing::warn!("{pooler}");
    }
    Ok(pooler)
}

/// The pooler that connections with these options go through, if there is one.
pub(crate) async fn pooler_at(options: &PgConnectOptions) -> Result<Option<Pooler>, LedgerError> {
    let options = options.clone().application_name("cutover-ledger");
    let (connection, is_direct) = marked(&options).await?;
    connection.close().await?;
    if is_direct { Ok(None) } else { within_limit(pooler::mode(&options)).await.map(Some) }
}

/// A connection, and whether no pooler is between.
async fn marked(options: &PgConnectOptions) -> Result<(PgConnection, bool), LedgerError> {
    let (marked, mark) = pooler::marked(options);
    match connected(&marked).await {
        Ok(mut connection) => {
            let is_direct = within_limit(pooler::is_direct(&mut connection, &mark)).await?;
            Ok((connection, is_direct))
        }
        Err(LedgerError::Database(error)) if pooler::refuses_mark(&error) => {
            Ok((connected(options).await?, false))
        }
        Err(error) => Err(error),
    }
}

async fn ensure(
    connection: &mut PgConnection,
    may_install: bool,
    next: Option<Step>,
) -> Result<(), LedgerError> {
    // READ COMMITTED sees what another process has installed while this one waited for it.
    let mut tx = connection.begin_with(WORK).await?;
    let role = check_session(&mut tx).await?;
    let found = schema::version(&mut tx).await.map_err(|error| no_rights(error, &role))?;
    let needs = schema::needed(next);
    match found {
        Some(found) if found.compatible_from > needs => {
            return Err(LedgerError::Newer { found: found.number, needs: found.compatible_from });
        }
        Some(found) if found.number >= needs => {}
        _ if may_install => schema::upgrade(&mut tx, &role, next).await?,
        Some(found) => return Err(LedgerError::Older { found: found.number, needs }),
        None => return Err(LedgerError::Missing),
    }
    tx.commit().await?;
    Ok(())
}

async fn connected(options: &PgConnectOptions) -> Result<PgConnection, LedgerError> {
    remember_password(options);
    within_limit(PgConnection::connect_with(options)).await
}

async fn within_limit<T>(answer: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, LedgerError> {
    match timeout(CONNECT, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(LedgerError::Timeout { limit: CONNECT }),
    }
}

fn no_rights(error: sqlx::Error, role: &str) -> LedgerError {
    match &error {
        sqlx::Error::Database(refusal) if refusal.code().as_deref() == Some("42501") => {
            LedgerError::NoRights { role: role.to_owned(), message: refusal.message().to_owned() }
        }
        _ => error.into(),
    }
}
