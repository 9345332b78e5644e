use sqlx::SqlSafeStr;
use sqlx::postgres::{PgPool, PgTransaction};

/// Begins a transaction in which each statement sees what has been committed, whatever the role's default level is.
pub(crate) const READ_COMMITTED: &str = "begin isolation level read committed";

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
