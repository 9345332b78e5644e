//! Table `read_counts`: when the server's counts of reads last changed. A count itself carries no time before Postgres 16.

use sqlx::PgConnection;

use super::unprepared;

/// Records a count of reads and returns the seconds since it last changed. The first count counts as a change, and so does
/// a reset of the statistics.
pub(crate) async fn observe(
    tx: &mut PgConnection,
    migration: i32,
    what: &str,
    reads: i64,
) -> Result<f64, sqlx::Error> {
    unprepared::query(
        "insert into cutover.read_counts as known (migration_id, what, reads) values ($1, $2, $3) \
         on conflict (migration_id, what) do update set reads = excluded.reads, changed_at = clock_timestamp() \
         where known.reads <> excluded.reads",
    )
    .bind(migration)
    .bind(what)
    .bind(reads)
    .execute(&mut *tx)
    .await?;
    unprepared::query_scalar(
        "select extract(epoch from clock_timestamp() - changed_at)::float8 from cutover.read_counts \
         where migration_id = $1 and what = $2",
    )
    .bind(migration)
    .bind(what)
    .fetch_one(tx)
    .await
}
