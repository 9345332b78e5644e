//! Tables `external_writes` and `external_write_events`, and the lock that transactions of external writers hold.

use sqlx::PgConnection;

use super::blockers::{OpenTransaction, open_transaction, sharers};
use super::{locks, unprepared};

/// The beginning of a statement that deletes evidence, with `using own`: the library's own, which `cutover.note_lost_rows` passes over.
macro_rules! own_delete {
    () => {
        "with own as (select set_config('cutover.own_delete', 'on', true)) "
    };
}
pub(crate) use own_delete;

/// The statement that adds the recorded events to the counts.
pub(crate) fn count(migration: i32) -> String {
    format!(
        concat!(
            own_delete!(),
            ", seen as (delete from cutover.external_write_events using own where migration_id = {migration} returning *) \
         insert into cutover.external_writes as known (migration_id, application, role, transactions, unmirrored, \
                 first_seen, last_seen, last_unmirrored) \
             select migration_id, application, role, count(*), count(*) filter (where not mirrored), \
                    min(at), max(at), max(at) filter (where not mirrored) \
             from seen group by migration_id, application, role \
         on conflict (migration_id, application, role) do update \
             set transactions = known.transactions + excluded.transactions, \
                 unmirrored = known.unmirrored + excluded.unmirrored, \
                 last_seen = greatest(known.last_seen, excluded.last_seen), \
                 last_unmirrored = greatest(known.last_unmirrored, excluded.last_unmirrored)"
        ),
        migration = migration
    )
}

/// If a transaction has been open for longer than this, the lock is not requested: later writers would queue behind the request.
const LONG: &str = "1 second";

/// A transaction's number, which stays the same when it is prepared, and when the server restarts after that. It has one before it has the
/// lock: `cutover.record_external_write` sees to that.
macro_rules! number {
    () => {
        "coalesce(a.backend_xid::text, p.transaction::text, l.virtualtransaction)"
    };
}

/// Waits a moment until no external writer has a transaction open, and makes the next one wait until this transaction
/// ends. `false`, or a lock timeout, if that takes longer.
pub(crate) async fn have_ended(tx: &mut PgConnection, migration: i32) -> Result<bool, sqlx::Error> {
    let is_long: bool = unprepared::query_scalar(concat!(
        "select count(*) filter (where a.xact_start is null or a.xact_start < clock_timestamp() - $3::text::interval) > 0",
        sharers!()
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

/// Transactions of external writers that were open at some time.
#[derive(Debug)]
pub(crate) struct OpenWriters {
    /// The time, as the database prints it.
    pub(crate) since: String,
    transactions: Vec<String>,
}

/// The transactions of external writers that are open now. When all of them have ended, what they wrote is visible. Later
/// external writes are recorded with a time after `since`.
pub(crate) async fn open_now(tx: &mut PgConnection, migration: i32) -> Result<OpenWriters, sqlx::Error> {
    let since = unprepared::query_scalar("select clock_timestamp()::text").fetch_one(&mut *tx).await?;
    let transactions = unprepared::query_scalar(concat!("select ", number!(), sharers!()))
        .bind(i64::from(locks::EXTERNAL_WRITERS))
        .bind(i64::from(migration))
        .fetch_all(tx)
        .await?;
    Ok(OpenWriters { since, transactions })
}

/// Those that are still open, oldest first, as text.
pub(crate) async fn still_open(
    tx: &mut PgConnection,
    migration: i32,
    writers: &OpenWriters,
) -> Result<Vec<String>, sqlx::Error> {
    named(tx, migration, Some(&writers.transactions)).await
}

/// The transactions of external writers that are open, oldest first, as text.
pub(crate) async fn open(tx: &mut PgConnection, migration: i32) -> Result<Vec<String>, sqlx::Error> {
    named(tx, migration, None).await
}

/// Guard triggers `t` of migration `$1` that are disabled, or that do not fire for every session.
macro_rules! from_disabled_guards {
    () => {
        "from pg_trigger t join pg_proc p on p.oid = t.tgfoid join pg_namespace n on n.oid = p.pronamespace \
         where n.nspname = 'cutover' and p.proname in ('guard_' || $1::integer, 'commit_check_' || $1::integer) \
             and t.tgenabled <> 'A'"
    };
}

/// The guard triggers of a migration that are disabled, or that do not fire for every session, as text with a remedy.
pub(crate) async fn disabled_guards(
    tx: &mut PgConnection,
    migration: i32,
) -> Result<Vec<String>, sqlx::Error> {
    unprepared::query_scalar(concat!(
        "select format('guard trigger %1$I of %2$s to be enabled, because %3$s meanwhile; to unblock: \
                 `alter table %2$s enable always trigger %1$I`', t.tgname, t.tgrelid::regclass, \
                case p.proname when 'guard_' || $1::integer then 'external writes are not seen' \
                    else 'rows that change between the two statements of a write are not compared' end) \
         ",
        from_disabled_guards!(),
        " order by 1 limit 5"
    ))
    .bind(migration)
    .fetch_all(tx)
    .await
}

/// Who wrote what the guard trigger could not mirror, in the last seconds, as text.
pub(crate) async fn unmirrored_within(
    tx: &mut PgConnection,
    migration: i32,
    seconds: f64,
) -> Result<Vec<String>, sqlx::Error> {
    unprepared::query_scalar(
        "with seen (application, role, at) as ( \
             select application, role, last_unmirrored from cutover.external_writes where migration_id = $1 \
             union all select application, role, at from cutover.external_write_events \
                 where migration_id = $1 and not mirrored) \
         select format('%s (role %s), %s s ago', application, role, \
                extract(epoch from clock_timestamp() - max(at))::bigint) \
         from seen where at > clock_timestamp() - make_interval(secs => $2) \
         group by application, role order by max(at) desc limit 5",
    )
    .bind(migration)
    .bind(seconds)
    .fetch_all(tx)
    .await
}

async fn named(
    tx: &mut PgConnection,
    migration: i32,
    only: Option<&[String]>,
) -> Result<Vec<String>, sqlx::Error> {
    let found: Vec<OpenTransaction> = unprepared::query_as(concat!(
        "select ",
        open_transaction!(),
        sharers!(),
        " and ($3::text[] is null or ",
        number!(),
        " = any ($3)) order by age desc limit 5"
    ))
    .bind(i64::from(locks::EXTERNAL_WRITERS))
    .bind(i64::from(migration))
    .bind(only)
    .fetch_all(tx)
    .await?;
    Ok(found.iter().map(|transaction| transaction.named("of an external writer")).collect())
}
