//! Finds out whether a connection pooler, such as PgBouncer, stands between this process and the server.

use std::fmt;

use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};

/// A setting that the startup message sets. A pooler opens its sessions by itself, so they don't have it.
const MARK: &str = "cutover.direct";
/// How often two connections compare their sessions.
const COMPARISONS: u32 = 5;

const WHO: &str = "select pg_backend_pid()";

/// How the pooler in front of the server assigns sessions to clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pooler {
    /// A client keeps its session until it disconnects.
    Session,
    /// A client has a session for one transaction only.
    Transaction {
        /// The pooler keeps prepared statements for its clients, as PgBouncer does with `max_prepared_statements`.
        keeps_statements: bool,
    },
}

impl Pooler {
    /// Why a service cannot use it, and what to set. `None`: it can. `has_unnamed`: the service states that none of its own
    /// statements has a name.
    pub(crate) fn refusal(self, has_unnamed: bool) -> Option<String> {
        (!has_unnamed && self == Self::Transaction { keeps_statements: false }).then(|| {
            format!(
                "{self}. Set max_prepared_statements = 200 (PgBouncer 1.21 or newer), or pool_mode = session, or connect to \
                 the server directly. Only if none of the service's own statements has a name, set \
                 CUTOVER_UNNAMED_STATEMENTS=true"
            )
        })
    }

    /// Whether a client keeps its session, so that notifications reach it.
    pub(crate) fn keeps_sessions(self) -> bool {
        self == Self::Session
    }
}

impl fmt::Display for Pooler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Session => {
                "connections go through a pooler in session mode: connection shares are off; limit the pooler instead \
                 (PgBouncer: max_db_connections)"
            }
            Self::Transaction { keeps_statements: true } => {
                "connections go through a pooler in transaction mode: connection shares are off, and changes are found by \
                 polling; limit the pooler instead (PgBouncer: max_db_connections)"
            }
            Self::Transaction { keeps_statements: false } => {
                "connections go through a pooler in transaction mode that does not keep prepared statements: a statement of \
                 the service that has a name fails with \"prepared statement does not exist\", or returns what another \
                 client's statement of that name finds; connection shares are off, and changes are found by polling"
            }
        })
    }
}

/// The options with a mark that only a direct connection carries to the session.
pub(super) fn marked(options: &PgConnectOptions) -> (PgConnectOptions, String) {
    let mark = format!("{:016x}", fastrand::u64(..));
    (options.clone().options([(MARK, &mark)]), mark)
}

/// Whether the session of this connection was opened for this connection.
pub(super) async fn is_direct(connection: &mut PgConnection, mark: &str) -> Result<bool, sqlx::Error> {
    let found = format!("select current_setting('{MARK}', true) = '{mark}'");
    let row = connection.fetch_one(AssertSqlSafe(found)).await?;
    Ok(row.try_get::<Option<bool>, _>(0)?.unwrap_or(false))
}

/// Whether a pooler has refused the mark, as PgBouncer does unless `ignore_startup_parameters` names `options`.
pub(super) fn refuses_mark(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|refusal| {
        refusal.code().as_deref() == Some("08P01") && refusal.message().contains("startup parameter")
    })
}

/// How a pooler that was found assigns its sessions.
pub(super) async fn mode(options: &PgConnectOptions) -> Result<Pooler, sqlx::Error> {
    let mut connection = PgConnection::connect_with(options).await?;
    let mut other = PgConnection::connect_with(options).await?;
    let pooler = match is_shared(&mut connection, &mut other).await? {
        true => Pooler::Transaction { keeps_statements: keeps_statements(&mut connection).await? },
        false => Pooler::Session,
    };
    let _ = tokio::join!(connection.close(), other.close());
    Ok(pooler)
}

/// Whether two connections come to use one session, or one connection two sessions.
async fn is_shared(connection: &mut PgConnection, other: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let pid = |row: PgRow| row.try_get::<i32, _>(0);
    let first = pid(connection.fetch_one(WHO).await?)?;
    for _ in 0..COMPARISONS {
        let others = pid(other.fetch_one(WHO).await?)?;
        let mine = pid(connection.fetch_one(WHO).await?)?;
        if mine != first || others == first {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether the pooler gives the server names of its own for the clients' prepared statements.
///
/// Everything happens in one transaction, so that it is in one session. What it prepares is removed again.
async fn keeps_statements(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    const PREPARED: &str =
        "select name from pg_prepared_statements where statement like $1 and name like 'sqlx\\_s\\_%'";
    let mut tx = connection.begin().await?;
    // A statement with a name, as drivers prepare it.
    let found =
        sqlx::query_scalar::<_, String>(PREPARED).bind("select name from pg_prepared_statements where%");
    match found.fetch_optional(&mut *tx).await {
        Ok(Some(name)) => {
            tx.execute(AssertSqlSafe(format!("deallocate {name}"))).await?;
            tx.commit().await?;
            Ok(false)
        }
        Ok(None) => {
            tx.commit().await?;
            Ok(true)
        }
        // The session has a statement of that name from another client.
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P05") => {
            tx.rollback().await?;
            Ok(false)
        }
        Err(error) => Err(error),
    }
}
