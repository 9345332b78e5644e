//! Rows whose new side may be behind: `cutover.repairs`.
//!
//! Dual writes record a row here when its new side could not be written, with the error. A mirror records every key that
//! it writes, until the row has arrived at the other store.

use sqlx::postgres::PgRow;
use sqlx::{Executor, PgConnection, PgPool, Postgres, Row};

use super::external_writes::own_delete;
use super::{literal, locks, unprepared};
use crate::config::redact;

/// How many characters of an error are kept.
const ERROR_CHARS: usize = 500;

/// A row to repair.
#[derive(Debug)]
pub(crate) struct Repair {
    /// The side that is behind: `old` or `new`.
    pub(crate) side: String,
    /// The row's key as JSON.
    pub(crate) key: String,
    /// Changes whenever the row falls behind again.
    pub(crate) version: i64,
}

/// A connection of any driver, on which statements with text parameters and text results run.
pub(crate) trait TextConnection {
    type Error;

    fn ask(
        &mut self,
        statement: &'static str,
        values: &[&str],
    ) -> impl Future<Output = Result<Vec<Vec<String>>, Self::Error>> + Send;
}

impl TextConnection for PgConnection {
    type Error = sqlx::Error;

    async fn ask(
        &mut self,
        statement: &'static str,
        values: &[&str],
    ) -> Result<Vec<Vec<String>>, sqlx::Error> {
        let mut query = unprepared::query(statement);
        for value in values {
            query = query.bind(*value);
        }
        let rows = query.fetch_all(self).await?;
        let texts = |row: &PgRow| (0..row.len()).map(|column| row.try_get(column)).collect();
        rows.iter().map(texts).collect()
    }
}

/// Records that the new side of rows is behind. `keys` is a JSON array. Returns `false` if the epoch may leave no row
/// behind, because an adjacent epoch reads that side.
pub(crate) async fn record<C: TextConnection>(
    connection: &mut C,
    migration: i32,
    epoch: i32,
    keys: &str,
    error: &str,
) -> Result<bool, C::Error> {
    let error: String = redact(error).chars().take(ERROR_CHARS).collect();
    let recorded = connection
        .ask(
            "select cutover.record_repairs($1::text::integer, $2::text::integer, 'new', $3::text::jsonb, $4)::text",
            &[&migration.to_string(), &epoch.to_string(), keys, &error],
        )
        .await?;
    Ok(recorded.iter().flatten().any(|answer| answer == "true"))
}

/// Up to 500 rows that are due on these sides, the longest due first.
pub(crate) async fn due<C: TextConnection>(
    connection: &mut C,
    migration: i32,
    sides: &[&str],
) -> Result<Vec<Repair>, C::Error> {
    let rows = connection
        .ask(
            "select side, key::text, version::text from cutover.repairs \
             where migration_id = $1::text::integer and side = any (string_to_array($2::text, ' ')) and not dead \
               and next_try_at <= clock_timestamp() \
             order by next_try_at limit 500",
            &[&migration.to_string(), &sides.join(" ")],
        )
        .await?;
    let repair = |row: Vec<String>| {
        let [side, key, version] = <[String; 3]>::try_from(row).ok()?;
        Some(Repair { side, key, version: version.parse().ok()? })
    };
    Ok(rows.into_iter().filter_map(repair).collect())
}

/// Removes a row that has been repaired, unless it has fallen behind again and therefore has another version.
pub(crate) async fn remove<C: TextConnection>(
    connection: &mut C,
    migration: i32,
    repair: &Repair,
) -> Result<(), C::Error> {
    connection
        .ask(
            concat!(
                own_delete!(),
                "delete from cutover.repairs using own where migration_id = $1::text::integer and side = $4 \
                    and key = $2::text::jsonb and version = $3::text::bigint"
            ),
            &[&migration.to_string(), &repair.key, &repair.version.to_string(), &repair.side],
        )
        .await?;
    Ok(())
}

/// Records a failed repair. The row is due again after 1 s, 2 s, 4 s and so on, up to two minutes, with jitter. After `max_attempts`
/// it is not tried again until a person asks for it; without a maximum it is tried for ever.
pub(crate) async fn fail<C: TextConnection>(
    connection: &mut C,
    migration: i32,
    repair: &Repair,
    error: &str,
    max_attempts: Option<u32>,
) -> Result<(), C::Error> {
    let error: String = redact(error).chars().take(ERROR_CHARS).collect();
    let max_attempts = max_attempts.map(|max| max.to_string()).unwrap_or_default();
    connection
        .ask(
            "update cutover.repairs set error = $4, attempts = attempts + 1, \
                    dead = coalesce(attempts + 1 >= nullif($5::text, '')::integer, false), \
                    next_try_at = clock_timestamp() + least(power(2, least(attempts, 20)), 120) \
                        * (0.8 + 0.2 * random()) * interval '1 second' \
             where migration_id = $1::text::integer and side = $6 and key = $2::text::jsonb \
               and version = $3::text::bigint",
            &[
                &migration.to_string(),
                &repair.key,
                &repair.version.to_string(),
                &error,
                &max_attempts,
                &repair.side,
            ],
        )
        .await?;
    Ok(())
}

/// Whether a row is left on these sides that is due now or later.
pub(crate) async fn has_pending<C: TextConnection>(
    connection: &mut C,
    migration: i32,
    sides: &[&str],
) -> Result<bool, C::Error> {
    let rows = connection
        .ask(
            "select 1::text from cutover.repairs \
             where migration_id = $1::text::integer and side = any (string_to_array($2::text, ' ')) and not dead limit 1",
            &[&migration.to_string(), &sides.join(" ")],
        )
        .await?;
    Ok(!rows.is_empty())
}

/// Records that this transaction writes a mirrored key, and returns the version of the write.
///
/// A statement of its own locks the key first. A version that is drawn before the lock is granted could be lower than
/// the version of a writer that held the lock in between, and the store would then keep the older row.
pub(crate) async fn record_write(
    tx: &mut PgConnection,
    migration: i32,
    key: &str,
) -> Result<i64, sqlx::Error> {
    unprepared::query("select pg_advisory_xact_lock($1, hashtext($2))")
        .bind(locks::MIRROR_KEY + migration)
        .bind(key)
        .execute(&mut *tx)
        .await?;
    // An earlier error stays visible until the row has arrived.
    unprepared::query_scalar(
        "insert into cutover.repairs (migration_id, side, key, error) values ($1, 'new', to_jsonb($2::text), '') \
         on conflict (migration_id, side, key) do update set version = nextval('cutover.repair_versions'), \
             since = clock_timestamp(), dead = false, next_try_at = clock_timestamp() \
         returning version",
    )
    .bind(migration)
    .bind(key)
    .fetch_one(tx)
    .await
}

/// Draws a new version for a row. The store has this version or a higher one with another row, because the sequence
/// repeats versions after a failover to a lagging standby.
pub(crate) async fn renew_version(
    tx: &mut PgConnection,
    migration: i32,
    repair: &Repair,
) -> Result<(), sqlx::Error> {
    unprepared::query(
        "update cutover.repairs set version = nextval('cutover.repair_versions') \
         where migration_id = $1 and side = 'new' and key = $2::text::jsonb and version = $3",
    )
    .bind(migration)
    .bind(&repair.key)
    .bind(repair.version)
    .execute(tx)
    .await?;
    Ok(())
}

/// Records keys for a copy. Keys that are already recorded stay as they are.
pub(crate) async fn record_all(
    tx: &mut PgConnection,
    migration: i32,
    keys: &[String],
) -> Result<(), sqlx::Error> {
    unprepared::query(
        "insert into cutover.repairs (migration_id, side, key, error) \
         select $1, 'new', to_jsonb(key), '' from unnest($2::text[]) as keys (key) \
         on conflict (migration_id, side, key) do nothing",
    )
    .bind(migration)
    .bind(keys)
    .execute(tx)
    .await?;
    Ok(())
}

/// Makes the writers of a key wait until the end of the transaction, by a row that the transaction has to remove before.
/// `None` if the key is already recorded.
pub(crate) async fn lock_key(
    tx: &mut PgConnection,
    migration: i32,
    key: &str,
) -> Result<Option<Repair>, sqlx::Error> {
    let row: Option<(String, i64)> = unprepared::query_as(
        "insert into cutover.repairs (migration_id, side, key, error) values ($1, 'new', to_jsonb($2::text), '') \
         on conflict (migration_id, side, key) do nothing returning key::text, version",
    )
    .bind(migration)
    .bind(key)
    .fetch_optional(tx)
    .await?;
    Ok(row.map(|(key, version)| Repair { side: "new".to_owned(), key, version }))
}

/// Whether the new side of a mirrored key may be behind.
pub(crate) async fn is_recorded<'e>(
    executor: impl Executor<'e, Database = Postgres>,
    migration: i32,
    key: &str,
) -> Result<bool, sqlx::Error> {
    let recorded = format!(
        "select exists (select from cutover.repairs \
             where migration_id = {migration} and side = 'new' and key = to_jsonb({}::text))",
        literal::text(key)
    );
    unprepared::ask_scalar(executor, recorded).await
}

/// Draws a version that is higher than all versions drawn so far.
pub(crate) async fn next_version(pool: &PgPool) -> Result<i64, sqlx::Error> {
    unprepared::ask_scalar(pool, "select nextval('cutover.repair_versions')").await
}

/// How many rows have a version up to `last`, and how many of these are not tried again until a person asks for it.
pub(crate) async fn count_until(pool: &PgPool, migration: i32, last: i64) -> Result<(i64, i64), sqlx::Error> {
    let count = format!(
        "select count(*), count(*) filter (where dead) from cutover.repairs \
         where migration_id = {migration} and side = 'new' and version <= {last}"
    );
    unprepared::ask_one(pool, count).await
}

/// Whether at least `many` rows are due now or later.
pub(crate) async fn has_at_least(pool: &PgPool, migration: i32, many: i64) -> Result<bool, sqlx::Error> {
    let count = format!(
        "select count(*) = {many} from (select from cutover.repairs \
             where migration_id = {migration} and not dead limit {many}) as recorded"
    );
    unprepared::ask_scalar(pool, count).await
}

/// The versions of these mirrored keys, without writes that a rollback to a savepoint has undone.
pub(crate) async fn versions(
    tx: &mut PgConnection,
    migration: i32,
    keys: &[&str],
) -> Result<Vec<i64>, sqlx::Error> {
    unprepared::query_scalar(
        "select version from cutover.repairs where migration_id = $1 and side = 'new' \
             and key in (select to_jsonb(key) from unnest($2::text[]) as keys (key))",
    )
    .bind(migration)
    .bind(keys)
    .fetch_all(tx)
    .await
}
