use sqlx::SqlSafeStr;
use sqlx::postgres::{PgPool, PgTransaction};

/// How a transaction begins that has to see what was committed, whatever the role's default is.
pub(crate) const READ_COMMITTED: &str = "begin isolation level read committed";

/// Begins a transaction, in a task of its own, because `sqlx` does not notice when it is dropped between sending `begin` and
/// the answer: the connection would go back to the pool inside a transaction, and whoever has it next would write into
/// that. What nobody waits for any more is rolled back there.
pub(crate) async fn begin(
    pool: &PgPool,
    statement: impl SqlSafeStr + Send + 'static,
) -> Result<PgTransaction<'static>, sqlx::Error> {
    let pool = pool.clone();
    let begun = tokio::spawn(async move { pool.begin_with(statement).await });
    // Else the runtime is being shut down.
    begun.await.unwrap_or(Err(sqlx::Error::WorkerCrashed))
}
