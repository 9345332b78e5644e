//! Rows that a backfill could not copy: `cutover.bad_rows`. A job cannot finish while it has such rows.

use sqlx::PgConnection;

use super::external_writes::own_delete;
use super::jobs::{Job, KeyText};
use super::unprepared;
use crate::config::redact;

/// Sets a row aside, or updates its error. Returns the number of rows that the job has set aside.
pub(crate) async fn set_aside(
    tx: &mut PgConnection,
    job: &Job,
    key: &[String],
    error: &str,
) -> Result<i64, sqlx::Error> {
    unprepared::query(
        "insert into cutover.bad_rows (migration_id, kind, key, error) values ($1, $2, $3, $4) \
         on conflict (migration_id, kind, key) do update set error = excluded.error",
    )
    .bind(job.migration)
    .bind(job.kind)
    .bind(key)
    .bind(redact(error))
    .execute(&mut *tx)
    .await?;
    unprepared::query_scalar("select count(*) from cutover.bad_rows where migration_id = $1 and kind = $2")
        .bind(job.migration)
        .bind(job.kind)
        .fetch_one(tx)
        .await
}

/// The keys of all rows that the job has set aside, the oldest first.
pub(crate) async fn keys(tx: &mut PgConnection, job: &Job) -> Result<Vec<KeyText>, sqlx::Error> {
    unprepared::query_scalar(
        "select key from cutover.bad_rows where migration_id = $1 and kind = $2 order by seen_at",
    )
    .bind(job.migration)
    .bind(job.kind)
    .fetch_all(tx)
    .await
}

/// The first `limit` rows with their errors, and the number of all of them.
pub(crate) async fn first(
    tx: &mut PgConnection,
    job: &Job,
    limit: i64,
) -> Result<(Vec<(KeyText, String)>, i64), sqlx::Error> {
    let rows: Vec<(KeyText, String, i64)> = unprepared::query_as(
        "select key, error, count(*) over () from cutover.bad_rows where migration_id = $1 and kind = $2 \
         order by seen_at limit $3",
    )
    .bind(job.migration)
    .bind(job.kind)
    .bind(limit)
    .fetch_all(tx)
    .await?;
    let count = rows.first().map_or(0, |(.., count)| *count);
    Ok((rows.into_iter().map(|(key, error, _)| (key, error)).collect(), count))
}

/// Removes a row that has been copied.
pub(crate) async fn remove(tx: &mut PgConnection, job: &Job, key: &[String]) -> Result<(), sqlx::Error> {
    unprepared::query(concat!(
        own_delete!(),
        "delete from cutover.bad_rows using own where migration_id = $1 and kind = $2 and key = $3"
    ))
    .bind(job.migration)
    .bind(job.kind)
    .bind(key)
    .execute(tx)
    .await?;
    Ok(())
}

/// Removes the rows that jobs of this kind set aside at earlier epochs.
pub(crate) async fn remove_all(tx: &mut PgConnection, migration: i32, kind: &str) -> Result<(), sqlx::Error> {
    unprepared::query(concat!(
        own_delete!(),
        "delete from cutover.bad_rows using own where migration_id = $1 and kind = $2"
    ))
    .bind(migration)
    .bind(kind)
    .execute(tx)
    .await?;
    Ok(())
}
