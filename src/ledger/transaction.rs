use sqlx::SqlSafeStr;
use sqlx::postgres::{PgPool, PgTransaction};

/// How a transaction of the library begins that the fence does not begin. Each of its statements sees what has been committed,
/// whatever the role's default level is. If the process is paused or cut off in the middle, the server ends the transaction after
/// this time, and its locks and its snapshot with it. Otherwise they would stay until the server finds the connection dead, which
/// takes hours. Where the catalog is large, the planner takes queries of it for expensive ones, and their just-in-time compilation
/// would take a hundred times as long as they do.
pub(crate) const WORK: &str = "begin isolation level read committed; set local idle_in_transaction_session_timeout = '10s'; \
    set local jit = off";

/// Begins a transaction of the library's own work, without a fence.
pub(crate) async fn begin_work(pool: &PgPool) -> Result<PgTransaction<'static>, sqlx::Error> {
    begin(pool, WORK).await
}

/// Begins a transaction in a task of its own. If this future is dropped between the `begin` and its answer, the task rolls
/// the transaction back. `sqlx` alone would return the connection to the pool inside the transaction, and the connection's next
/// user would write into it.
pub(crate) async fn begin(
    pool: &PgPool,
    statement: impl SqlSafeStr + Send + 'static,
) -> Result<PgTransaction<'static>, sqlx::Error> {
    let pool = pool.clone();
    let begun = tokio::spawn(async move { pool.begin_with(statement).await });
    // The task fails only if the runtime is shutting down.
    begun.await.unwrap_or(Err(sqlx::Error::WorkerCrashed))
}
