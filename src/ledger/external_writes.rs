//! Writes past the library: who made them, and whose transactions are open.

use sqlx::PgConnection;

use super::locks;
use super::unprepared;

/// The statement that counts what was written down one by one.
pub(crate) fn count(migration: i32) -> String {
    format!(
        "with seen as (delete from cutover.external_write_events where migration_id = {migration} returning *) \
         insert into cutover.external_writes as known (migration_id, application, role, transactions, uncopied, \
                 first_seen, last_seen, last_uncopied) \
             select migration_id, application, role, count(*), count(*) filter (where not copied), \
                    min(at), max(at), max(at) filter (where not copied) \
             from seen group by migration_id, application, role \
         on conflict (migration_id, application, role) do update \
             set transactions = known.transactions + excluded.transactions, \
                 uncopied = known.uncopied + excluded.uncopied, \
                 last_seen = greatest(known.last_seen, excluded.last_seen), \
                 last_uncopied = greatest(known.last_uncopied, excluded.last_uncopied)"
    )
}

/// Who is open for longer than this is not waited for in the queue of the lock, where others would have to wait behind.
const LONG: &str = "1 second";

/// Strangers' transactions that hold the lock `$1`, `$2`, among them those that were prepared for a later commit.
macro_rules! holders {
    () => {
        " from pg_locks l left join pg_stat_activity a on a.pid = l.pid \
         where l.locktype = 'advisory' and l.classid::bigint = $1 and l.objid::bigint = $2 and l.objsubid = 2 \
           and l.granted and l.mode = 'ShareLock' \
           and l.database = (select oid from pg_database where datname = current_database())"
    };
}

/// Waits a moment until none of those who write past the library is in the middle of a transaction, and holds the next one
/// up until this transaction ends. `false`, or an error that the lock was not to be had, when it lasts longer.
pub(crate) async fn have_ended(tx: &mut PgConnection, migration: i32) -> Result<bool, sqlx::Error> {
    let is_long: bool = unprepared::query_scalar(concat!(
        "select count(*) filter (where a.xact_start is null or a.xact_start < clock_timestamp() - $3::text::interval) > 0",
        holders!()
    ))
    .bind(i64::from(locks::EXTERNAL_WRITERS))
    .bind(i64::from(migration))
    .bind(LONG)
    .fetch_one(&mut *tx)
    .await?;
    if is_long {
        return Ok(false);
    }
    unprepared::query("select pg_advisory_xact_lock($1, $2)")
        .bind(locks::EXTERNAL_WRITERS)
        .bind(migration)
        .execute(tx)
        .await?;
    Ok(true)
}

/// Transactions of strangers that were open at a time.
#[derive(Debug)]
pub(crate) struct OpenStrangers {
    /// As the database writes it.
    pub(crate) since: String,
    transactions: Vec<String>,
}

/// Who is in the middle of a transaction now. What they wrote before is there to be seen when all of them have ended; what
/// others write later is written down as later than `since`.
pub(crate) async fn open_now(tx: &mut PgConnection, migration: i32) -> Result<OpenStrangers, sqlx::Error> {
    let since = unprepared::query_scalar("select clock_timestamp()::text").fetch_one(&mut *tx).await?;
    let transactions = unprepared::query_scalar(concat!("select l.virtualtransaction", holders!()))
        .bind(i64::from(locks::EXTERNAL_WRITERS))
        .bind(i64::from(migration))
        .fetch_all(tx)
        .await?;
    Ok(OpenStrangers { since, transactions })
}

/// Which of them are still open, the oldest first, in words.
pub(crate) async fn still_open(
    tx: &mut PgConnection,
    migration: i32,
    strangers: &OpenStrangers,
) -> Result<Vec<String>, sqlx::Error> {
    named(tx, migration, Some(&strangers.transactions)).await
}

/// Who is in the middle of a transaction, the oldest first, in words.
pub(crate) async fn open(tx: &mut PgConnection, migration: i32) -> Result<Vec<String>, sqlx::Error> {
    named(tx, migration, None).await
}

async fn named(
    tx: &mut PgConnection,
    migration: i32,
    only: Option<&[String]>,
) -> Result<Vec<String>, sqlx::Error> {
    unprepared::query_scalar(concat!(
        "select case when a.pid is null then 'a prepared transaction past the library (see pg_prepared_xacts)' \
             else format('a transaction past the library, open for %s s (pid %s, %s)', \
                 coalesce(extract(epoch from clock_timestamp() - a.xact_start)::bigint, 0), a.pid, \
                 coalesce(nullif(a.application_name, ''), 'unnamed')) end",
        holders!(),
        " and ($3::text[] is null or l.virtualtransaction = any ($3)) order by a.xact_start limit 5"
    ))
    .bind(i64::from(locks::EXTERNAL_WRITERS))
    .bind(i64::from(migration))
    .bind(only)
    .fetch_all(tx)
    .await
}
