use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPool, PgRow};
use sqlx::{Connection, Executor, PgConnection, PgTransaction, Row};
use tokio::time::{sleep, timeout};

use super::connections::Connections;
use super::error::LedgerError;
use super::notifications::{Notifications, Subscription};
use super::schema::{self, SCHEMA_VERSION};
use super::transaction::{READ_COMMITTED, begin};
use super::unprepared;

/// How long a first connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// How every transaction on the ledger begins. The server ends one whose process is paused or cut off in the
/// middle, and nobody waits long for a lock that such a process holds: else one of them could stop the fleet.
const BEGIN: &str = "begin isolation level read committed; set local lock_timeout = '2s'; set local idle_in_transaction_session_timeout = '3s'";

/// How often an upgrade comes back where a writer's transaction was in its way, and after how long: with the wait itself, a
/// quarter of a minute in all.
const ATTEMPTS: u32 = 30;
const BACKOFF: std::ops::Range<u64> = 200..400;

/// The oldest server whose features the ledger uses.
const OLDEST_SERVER: i32 = 130_000;

/// The tables in schema `cutover` that hold who is alive, which epoch is current, and the history.
///
/// It lives in the same database as the data, so that both come back from the same write-ahead log after a
/// failover. It has a few connections of its own, derived from the service's options: asking for an
/// extension of a lease must not wait in the queue of a busy pool.
///
/// A cheap handle. Its clones share the connections, so several fleets, or many instances, of one process need no
/// more of them than one.
#[derive(Clone)]
pub struct Ledger {
    inner: Arc<Inner>,
}

struct Inner {
    connections: Arc<Connections>,
    listening: Subscription,
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the options: they may hold a password.
        f.debug_struct("Ledger").field("pool", &self.pool()).finish_non_exhaustive()
    }
}

impl Ledger {
    /// Connects with `options`, installs or upgrades the schema where it is missing or old, and checks that
    /// this library can work with it.
    ///
    /// Two versions of the library may do so at once. A role without the right to create a schema is enough
    /// where the schema is installed already.
    ///
    /// # Errors
    ///
    /// Any [`LedgerError`]. Nothing was changed then.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future rolls the installation back.
    pub async fn open(options: PgConnectOptions) -> Result<Self, LedgerError> {
        Self::connect(options, true).await
    }

    /// Like [`Ledger::open`], but a missing schema is [`LedgerError::Missing`] and an old one [`LedgerError::Older`].
    ///
    /// # Errors
    ///
    /// Any [`LedgerError`].
    ///
    /// # Cancel safety
    ///
    /// Safe: reads only.
    pub async fn existing(options: PgConnectOptions) -> Result<Self, LedgerError> {
        Self::connect(options, false).await
    }

    /// Whether the first start of a service would install the schema that [`Ledger::existing`] calls missing, or upgrade
    /// the one that it calls older.
    ///
    /// # Errors
    ///
    /// [`LedgerError::NotInstalled`] or [`LedgerError::NotUpgraded`] when this role may not, [`LedgerError::Database`].
    ///
    /// # Cancel safety
    ///
    /// Safe: reads only.
    pub async fn can_install(options: &PgConnectOptions) -> Result<(), LedgerError> {
        let mut connection = connected(options).await?;
        let (may_create, role): (bool, String) = unprepared::query_as(
            "select has_database_privilege(current_database(), 'create'), current_user::text",
        )
        .fetch_one(&mut connection)
        .await?;
        let found = schema::version(&mut connection).await?.map(|version| version.number);
        let owns: Option<bool> = unprepared::query_scalar(
            "select pg_has_role(tableowner, 'usage') from pg_tables where schemaname = 'cutover' and tablename = 'ledger'",
        )
        .fetch_optional(&mut connection)
        .await?;
        connection.close().await?;
        match found {
            None if !may_create => Err(LedgerError::NotInstalled { role }),
            Some(found) if owns != Some(true) => Err(LedgerError::NotUpgraded { role, found }),
            _ => Ok(()),
        }
    }

    async fn connect(options: PgConnectOptions, install: bool) -> Result<Self, LedgerError> {
        let mut options = options.statement_cache_capacity(0);
        // The name keeps them apart from what others use, when connections are counted. Under a name of the user's own
        // they count twice: to be on the safe side.
        if options.get_application_name().is_none() {
            options = options.application_name("cutover-ledger");
        }
        let connections = Arc::new(Connections::new(options));
        let ledger = Self { inner: Arc::new(Inner { connections, listening: Subscription::default() }) };
        ledger.ensure(install).await?;
        Ok(ledger)
    }

    /// Lets a role use the ledger: what an instance needs at run time, and nothing else.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Database`] when there is no such role, or this one may not grant.
    ///
    /// # Cancel safety
    ///
    /// Safe: all or nothing.
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
    /// Everything asked of the ledger runs in a transaction, also a single query: behind a pooler in
    /// transaction mode the preparation of a statement and its execution could else reach different servers.
    pub(crate) async fn begin(&self) -> Result<PgTransaction<'static>, sqlx::Error> {
        begin(&self.pool(), BEGIN).await
    }

    /// See [`Connections::ask`].
    pub(crate) async fn ask(&self, statement: String) -> Result<Vec<PgRow>, sqlx::Error> {
        self.inner.connections.ask(statement).await
    }

    /// Follows what happens to the migrations of a fleet.
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

    /// Sees that the schema is there and of this library's version, or one that it can work with.
    async fn ensure(&self, may_install: bool) -> Result<(), LedgerError> {
        // A connection of its own, because a pool tries again where the server refuses it, and then says only
        // that time has run out; and because a first installation by several processes takes turns, which the
        // time limits of other transactions are too short for.
        let mut connection = connected(&self.inner.connections.options).await?;
        let mut attempt = 1;
        while let Err(error) = ensure(&mut connection, may_install).await {
            if !matches!(error, LedgerError::Busy) || attempt == ATTEMPTS {
                return Err(error);
            }
            attempt += 1;
            sleep(Duration::from_millis(fastrand::u64(BACKOFF))).await;
        }
        connection.close().await?;
        Ok(())
    }
}

async fn ensure(connection: &mut PgConnection, may_install: bool) -> Result<(), LedgerError> {
    // What another process has installed while this one waited for it has to be seen.
    let mut tx = connection.begin_with(READ_COMMITTED).await?;
    let row = tx
        .fetch_one(
            "select current_setting('server_version_num')::int as server, pg_is_in_recovery() as standby, \
             current_user::text as role",
        )
        .await?;
    check_server(row.try_get("server")?, row.try_get("standby")?)?;
    let role: String = row.try_get("role")?;
    let found = schema::version(&mut tx).await.map_err(|error| no_rights(error, &role))?;
    match found {
        Some(found) if found.compatible_from > SCHEMA_VERSION => {
            return Err(LedgerError::Newer { found: found.number, needs: found.compatible_from });
        }
        Some(found) if found.number >= SCHEMA_VERSION => {}
        _ if may_install => schema::bring_up_to_date(&mut tx, &role).await?,
        Some(found) => return Err(LedgerError::Older { found: found.number }),
        None => return Err(LedgerError::Missing),
    }
    tx.commit().await?;
    Ok(())
}

async fn connected(options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    let no_answer =
        |_| std::io::Error::new(std::io::ErrorKind::TimedOut, format!("no answer within {CONNECT:?}"));
    timeout(CONNECT, PgConnection::connect_with(options)).await.map_err(no_answer)?
}

fn check_server(version: i32, is_standby: bool) -> Result<(), LedgerError> {
    if version < OLDEST_SERVER {
        return Err(LedgerError::ServerTooOld(version / 10_000));
    }
    if is_standby { Err(LedgerError::ReadOnly) } else { Ok(()) }
}

fn no_rights(error: sqlx::Error, role: &str) -> LedgerError {
    match &error {
        sqlx::Error::Database(refusal) if refusal.code().as_deref() == Some("42501") => {
            LedgerError::NoRights { role: role.to_owned(), message: refusal.message().to_owned() }
        }
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_too_old_or_read_only_is_refused() {
        assert!(check_server(130_000, false).is_ok());
        let old = check_server(120_017, false).expect_err("refused").to_string();
        assert!(old.contains("PostgreSQL 12") && old.contains("13 or newer"), "{old}");
        assert!(matches!(check_server(150_003, true), Err(LedgerError::ReadOnly)));
    }
}
