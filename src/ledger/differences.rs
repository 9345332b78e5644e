//! Rows on which a scan found the sides to differ: `cutover.differences`.

use sqlx::PgConnection;

use super::jobs::{Job, KeyText};
use super::unprepared;

/// How many differences a scan records.
const RECORDED: i64 = 1_000;
/// Replaces a value that must not appear in reports. A hash would not hide it: a status or a date is quickly guessed.
const HIDDEN: &str = "\"…\"";

/// Records a difference, with the expected and the found value as JSON. Values are replaced if they are sensitive.
pub(crate) async fn record(
    tx: &mut PgConnection,
    job: &Job,
    key: &[String],
    what: &str,
    values: [Option<String>; 2],
    sensitive: bool,
) -> Result<(), sqlx::Error> {
    let [expected, found] =
        values.map(|value| if sensitive { value.map(|_| HIDDEN.to_owned()) } else { value });
    unprepared::query(
        "insert into cutover.differences (job_id, key, what, expected, found) \
         select $1, $2, $3, $4::text::jsonb, $5::text::jsonb \
         where (select count(*) from cutover.differences where job_id = $1) < $6 on conflict (job_id, key) do nothing",
    )
    .bind(job.id)
    .bind(key)
    .bind(what)
    .bind(expected)
    .bind(found)
    .bind(RECORDED)
    .execute(tx)
    .await?;
    Ok(())
}

/// The number of rows that differ, and the first `limit` keys of each kind of difference.
pub(crate) async fn summary(
    tx: &mut PgConnection,
    job: &Job,
    limit: i64,
) -> Result<(i64, Vec<(String, Vec<KeyText>)>), sqlx::Error> {
    let differences: Option<i64> =
        unprepared::query_scalar("select differences from cutover.jobs where id = $1")
            .bind(job.id)
            .fetch_optional(&mut *tx)
            .await?;
    let mut found = Vec::new();
    for what in ["different", "missing", "extra", "way_back"] {
        // In the order in which they were found.
        let keys: Vec<KeyText> = unprepared::query_scalar(
            "select key from cutover.differences where job_id = $1 and what = $2 order by ctid limit $3",
        )
        .bind(job.id)
        .bind(what)
        .bind(limit)
        .fetch_all(&mut *tx)
        .await?;
        if !keys.is_empty() {
            found.push((what.to_owned(), keys));
        }
    }
    Ok((differences.unwrap_or(0), found))
}
