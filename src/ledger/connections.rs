use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgRow};
use sqlx::{AssertSqlSafe, Connection, Executor, FromRow, PgConnection, Row};
use tokio::time::timeout;

use super::error::LedgerError;
use super::refusals::{check_session, refused_connection};
use super::unprepared;

/// The ledger's own connections to its database: at most four, and one more for a moment if they do not answer.
pub(crate) struct Connections {
    pub(crate) options: PgConnectOptions,
    /// No pooler is between, so a session belongs to one connection.
    is_direct: bool,
    pool: ArcSwap<PgPool>,
    sessions: Arc<Sessions>,
    is_replacing: AtomicBool,
    /// Why the server refused the last attempt to replace them, or would refuse their writes.
    refusal: Mutex<Option<String>>,
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The options may hold a password.
        f.debug_struct("Connections").field("pool", &self.pool.load()).finish_non_exhaustive()
    }
}

/// One connection listens, one renews the lease, one of the driver waits for locks, and one is spare.
const CONNECTIONS: u32 = 4;
/// An idle connection is closed after this time.
const IDLE: Duration = Duration::from_secs(30);
/// The time limit of the query that asks what the sessions do.
const LIMIT: Duration = Duration::from_secs(4);
/// Four connections that are replaced whenever they were idle make fewer sessions than this in the lifetime of one.
const SESSIONS: usize = 256;

/// The server's sessions that belong to this process: process id and start.
#[derive(Debug, Default)]
struct Sessions(Mutex<VecDeque<(i32, String)>>);

impl Sessions {
    fn add(&self, session: (i32, String)) {
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if sessions.len() == SESSIONS {
            sessions.pop_front();
        }
        sessions.push_back(session);
    }

    /// The sessions as a list of rows in SQL. The first row is one that does not exist, so that the list is not empty.
    fn rows(&self) -> String {
        let sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = sessions.iter().map(|(pid, start)| format!(", ({pid}, '{start}'::timestamptz)"));
        format!("(0, null::timestamptz){}", rows.collect::<String>())
    }
}

fn pool(options: &PgConnectOptions, sessions: Option<&Arc<Sessions>>) -> PgPool {
    let pool = PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .min_connections(0)
        .acquire_timeout(Duration::from_secs(5))
        .idle_timeout(IDLE)
        .max_lifetime(Duration::from_secs(30 * 60));
    let pool = match sessions.cloned() {
        Some(sessions) => pool.after_connect(move |connection, _| {
            let sessions = Arc::clone(&sessions);
            Box::pin(async move {
                sessions.add(session(connection).await?);
                Ok(())
            })
        }),
        None => pool,
    };
    pool.connect_lazy_with(options.clone())
}

async fn session(connection: &mut PgConnection) -> Result<(i32, String), sqlx::Error> {
    let found = "select pid, backend_start::text from pg_stat_activity where pid = pg_backend_pid()";
    let row = connection.fetch_one(found).await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

impl Connections {
    pub(crate) fn new(options: PgConnectOptions, is_direct: bool) -> Self {
        let sessions = Arc::default();
        let pool = ArcSwap::from_pointee(pool(&options, is_direct.then_some(&sessions)));
        Self {
            options,
            is_direct,
            pool,
            sessions,
            is_replacing: AtomicBool::new(false),
            refusal: Mutex::default(),
        }
    }

    /// Runs one statement as a single message ([`unprepared::ask`]): one round trip, where a transaction takes four. It needs
    /// no transaction, also behind a pooler.
    pub(crate) async fn ask<T>(&self, statement: String) -> Result<Vec<T>, sqlx::Error>
    where
        T: for<'r> FromRow<'r, PgRow>,
    {
        unprepared::ask(&*self.pool(), statement).await
    }

    pub(crate) fn pool(&self) -> Arc<PgPool> {
        self.pool.load_full()
    }

    /// Why the server refuses connections, or their writes, as found by the last attempt to replace them.
    pub(crate) fn refusal(&self) -> Option<String> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note_refusal(&self, refusal: Option<String>) {
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = refusal;
    }

    /// Replaces the connections in the background if the server does not know what they wait for.
    ///
    /// Called when an answer does not arrive. If the server has vanished, connections hang until the operating system closes
    /// them, which takes about a quarter of an hour, and a pool would wait that long. But if the server itself is still busy
    /// with a statement, such as a commit that waits for a synchronous standby, its session stays whatever the client does.
    /// New connections would only use up what the server allows, so this waits for the statement instead.
    pub(crate) fn reconnect(self: &Arc<Self>) {
        if self.is_replacing.swap(true, Ordering::SeqCst) {
            return;
        }
        let connections = Arc::clone(self);
        tokio::spawn(async move {
            match timeout(LIMIT, connections.replace()).await {
                Ok(Ok(true)) => tracing::info!("the ledger's connections were replaced"),
                Ok(Ok(false)) => tracing::warn!(
                    "the server is still busy with a statement of the ledger, such as a commit that waits for a \
                     synchronous standby; waiting for it"
                ),
                Ok(Err(error)) => tracing::debug!(%error, "the ledger's connections were not replaced"),
                Err(_) => tracing::debug!("the ledger's connections were not replaced: no answer in time"),
            }
            connections.is_replacing.store(false, Ordering::SeqCst);
        });
    }

    /// `false`: the server is busy with a statement of one of the connections.
    async fn replace(&self) -> Result<bool, sqlx::Error> {
        // Not from the pool: it retries some refusals and then reports a timeout only.
        let mut connection = PgConnection::connect_with(&self.options)
            .await
            .inspect_err(|error| self.note_refusal(Some(refused_connection(error, &self.options))))?;
        match check_session(&mut connection).await {
            Ok(_) => self.note_refusal(None),
            Err(refusal) => {
                self.note_refusal(Some(refusal.to_string()));
                if let LedgerError::Database(error) = refusal {
                    return Err(error);
                }
            }
        }
        let is_busy: bool = connection.fetch_one(AssertSqlSafe(self.busy())).await?.try_get(0)?;
        if !is_busy {
            let end_idle = self.end_idle();
            // First, so that nothing new begins on a session that ends.
            self.pool.store(Arc::new(pool(&self.options, self.is_direct.then_some(&self.sessions))));
            if self.is_direct {
                // The server has answered, and the answers were lost.
                connection.execute(AssertSqlSafe(end_idle)).await?;
            }
        }
        connection.close().await?;
        Ok(!is_busy)
    }

    fn busy(&self) -> String {
        let whose = match self.is_direct {
            true => format!("state = 'active' and (pid, backend_start) in ({})", self.sessions.rows()),
            // Any client of the pooler may have the session.
            false => {
                "wait_event = 'SyncRep' and datname = current_database() and usename = current_user".into()
            }
        };
        format!("select exists (select from pg_stat_activity where {whose})")
    }

    fn end_idle(&self) -> String {
        let rows = self.sessions.rows();
        format!(
            "select pg_terminate_backend(pid) from pg_stat_activity \
             where state = 'idle' and (pid, backend_start) in ({rows})"
        )
    }
}
