//! Keys whose new side may be behind: rows of `cutover.repairs`, without an error while they are on their way.

use sqlx::{Executor, PgConnection, PgPool, Postgres};

use super::locks;
use super::unprepared;

/// A key that is noted, and which time it was.
#[derive(Debug)]
pub(crate) struct Note {
    pub(crate) key: String,
    pub(crate) version: i64,
}

/// Notes that this transaction writes the key, and draws the version.
///
/// The key's lock comes first, in a statement of its own: a version that was drawn before it was had could be lower than
/// that of somebody who had it in between, and the store would keep the older row.
pub(crate) async fn write(tx: &mut PgConnection, migration: i32, key: &str) -> Result<i64, sqlx::Error> {
    unprepared::query("select pg_advisory_xact_lock($1, hashtext($2))")
        .bind(locks::MIRROR_KEY + migration)
        .bind(key)
        .execute(&mut *tx)
        .await?;
    // What failed before stays said until the row has arrived.
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

/// The store has this version or a higher one, and another row: after a failover to a standby that lagged versions are
/// drawn again. It is tried under a later one.
pub(crate) async fn redraw(pool: &PgPool, migration: i32, note: &Note) -> Result<(), sqlx::Error> {
    unprepared::query(
        "update cutover.repairs set version = nextval('cutover.repair_versions') \
         where migration_id = $1 and side = 'new' and key = to_jsonb($2::text) and version = $3",
    )
    .bind(migration)
    .bind(&note.key)
    .bind(note.version)
    .execute(pool)
    .await?;
    Ok(())
}

/// Notes keys that nobody is writing just now, for a copy; those that are noted stay as they are.
pub(crate) async fn write_all(
    tx: &mut PgConnection,
    migration: i32,
    keys: &[String],
) -> Result<(), sqlx::Error> {
    unprepared::query(
        "insert into cutover.repairs (migration_id, side, key, error) \
         select $1, 'new', to_jsonb(key), '' from unnest($2::text[]) as keys (key) on conflict do nothing",
    )
    .bind(migration)
    .bind(keys)
    .execute(tx)
    .await?;
    Ok(())
}

/// Holds the key's writers up until the transaction ends, by a note that is to be settled before; `None` where it is
/// noted already.
pub(crate) async fn lock(
    tx: &mut PgConnection,
    migration: i32,
    key: &str,
) -> Result<Option<i64>, sqlx::Error> {
    unprepared::query_scalar(
        "insert into cutover.repairs (migration_id, side, key, error) values ($1, 'new', to_jsonb($2::text), '') \
         on conflict do nothing returning version",
    )
    .bind(migration)
    .bind(key)
    .fetch_optional(tx)
    .await
}

/// Whether the key is noted.
pub(crate) async fn is_noted<'e>(
    executor: impl Executor<'e, Database = Postgres>,
    migration: i32,
    key: &str,
) -> Result<bool, sqlx::Error> {
    unprepared::query_scalar(
        "select exists (select from cutover.repairs \
             where migration_id = $1 and side = 'new' and key = to_jsonb($2::text))",
    )
    .bind(migration)
    .bind(key)
    .fetch_one(executor)
    .await
}

/// The row has arrived under this version: forgets the note, unless it has been written anew.
pub(crate) async fn settle<'e>(
    executor: impl Executor<'e, Database = Postgres>,
    migration: i32,
    key: &str,
    version: i64,
) -> Result<(), sqlx::Error> {
    unprepared::query(
        "delete from cutover.repairs \
         where migration_id = $1 and side = 'new' and key = to_jsonb($2::text) and version = $3",
    )
    .bind(migration)
    .bind(key)
    .bind(version)
    .execute(executor)
    .await?;
    Ok(())
}

/// Those that are due, the oldest first.
pub(crate) async fn due(pool: &PgPool, migration: i32) -> Result<Vec<Note>, sqlx::Error> {
    let rows: Vec<(String, i64)> = unprepared::query_as(
        "select key #>> '{}', version from cutover.repairs \
         where migration_id = $1 and side = 'new' and not dead and next_try_at <= clock_timestamp() \
         order by next_try_at limit 500",
    )
    .bind(migration)
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(|(key, version)| Note { key, version }).collect())
}

/// The version that was drawn last, or a later one.
pub(crate) async fn last(pool: &PgPool) -> Result<i64, sqlx::Error> {
    unprepared::query_scalar("select nextval('cutover.repair_versions')").fetch_one(pool).await
}

/// How many of those up to version `last` there are, and how many of them are not tried again before a person asks for it.
pub(crate) async fn left(pool: &PgPool, migration: i32, last: i64) -> Result<(i64, i64), sqlx::Error> {
    unprepared::query_as(
        "select count(*), count(*) filter (where dead) from cutover.repairs \
         where migration_id = $1 and side = 'new' and version <= $2",
    )
    .bind(migration)
    .bind(last)
    .fetch_one(pool)
    .await
}

/// Whether so many or more are due, now or later.
pub(crate) async fn are_many(pool: &PgPool, migration: i32, many: i64) -> Result<bool, sqlx::Error> {
    unprepared::query_scalar(
        "select count(*) = $2 from (select from cutover.repairs \
             where migration_id = $1 and not dead limit $2) as noted",
    )
    .bind(migration)
    .bind(many)
    .fetch_one(pool)
    .await
}

/// The versions under which these keys are noted now: without what a savepoint has taken back.
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

/// It could not be delivered: it is due again after a second, then two, and so on up to five minutes; after fifty times,
/// some four hours, it is left to a person.
pub(crate) async fn fail(pool: &PgPool, migration: i32, note: &Note, error: &str) -> Result<(), sqlx::Error> {
    let error: String = error.chars().take(500).collect();
    unprepared::query(
        "update cutover.repairs set error = $4, attempts = attempts + 1, dead = attempts + 1 >= 50, \
                next_try_at = clock_timestamp() + least(power(2, least(attempts, 20)), 300) * interval '1 second' \
         where migration_id = $1 and side = 'new' and key = to_jsonb($2::text) and version = $3",
    )
    .bind(migration)
    .bind(&note.key)
    .bind(note.version)
    .bind(error)
    .execute(pool)
    .await?;
    Ok(())
}
