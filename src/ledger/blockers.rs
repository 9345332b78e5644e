//! Which sessions a session waits for.

use sqlx::{FromRow, PgConnection};

use super::{Ledger, unprepared};

/// A session that holds, or waits in front for, a lock that another session waits for.
#[derive(Debug, FromRow)]
pub(crate) struct BlockingSession {
    pub(crate) pid: i32,
    pub(crate) application: String,
    /// Seconds since its transaction began.
    pub(crate) age: i64,
}

/// Sets `lock_timeout` for the transaction and returns the process id of its backend.
pub(crate) async fn limit_lock_wait(tx: &mut PgConnection, milliseconds: u32) -> Result<i32, sqlx::Error> {
    let statement = format!("set local lock_timeout = {milliseconds}; select pg_backend_pid()");
    unprepared::ask_scalar(tx, statement).await
}

/// The sessions that the backend `pid` waits for at this moment, oldest transaction first.
pub(crate) async fn of(ledger: &Ledger, pid: i32) -> Result<Vec<BlockingSession>, sqlx::Error> {
    let statement = format!(
        "select pid, coalesce(application_name, '') as application, \
                coalesce(extract(epoch from clock_timestamp() - xact_start)::bigint, 0) as age \
         from pg_stat_activity where pid = any (pg_blocking_pids({pid})) order by age desc limit 5"
    );
    ledger.ask(statement).await
}
