//! How far standbys are behind what a migration needs from them.

use sqlx::{FromRow, PgConnection};

use super::unprepared;

/// A standby that has not replayed enough.
#[derive(Debug, FromRow)]
pub(crate) struct StandbyRow {
    pub(crate) name: String,
    /// Bytes of WAL that it has yet to replay. `None`: it is not connected, this role may not see its position, or the
    /// server does not report positions.
    pub(crate) bytes: Option<i64>,
}

/// A consumer of logical replication is no standby: it has no pages to read from. Its walsender always uses a logical slot.
macro_rules! standbys {
    () => {
        "(select r.* from pg_stat_replication r where not exists (select from pg_replication_slots s \
            where s.active_pid = r.pid and s.slot_type = 'logical'))"
    };
}
pub(crate) use standbys;

/// The position in the write-ahead log, or null where the server does not report it.
macro_rules! wal_position {
    () => {
        "cutover.wal_position()"
    };
}
pub(crate) use wal_position;

/// The standbys among `names` that have not replayed all copies, all rows that were repaired before the epoch was sealed,
/// and the end of the previous epoch.
pub(crate) async fn lagging(
    connection: &mut PgConnection,
    migration: i32,
    names: &[String],
) -> Result<Vec<StandbyRow>, sqlx::Error> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    unprepared::query_as(concat!(
        "with needed as (select greatest( \
             (select max(finished_lsn) from cutover.jobs where migration_id = $1 and kind <> 'scan'), \
             (select greatest(max(drained_lsn), max(sealed_lsn)) from cutover.epochs where migration_id = $1)) as lsn, \
             cutover.wal_position() is null as is_unknown) \
         select w.name, case when not needed.is_unknown then \
                pg_wal_lsn_diff(needed.lsn, min(r.replay_lsn))::bigint end as bytes \
         from needed cross join unnest($2::text[]) as w (name) \
         left join ",
        standbys!(),
        " as r on r.application_name = w.name \
         group by w.name, needed.lsn, needed.is_unknown \
         having needed.is_unknown or needed.lsn is not null \
            and (min(r.replay_lsn) is null or min(r.replay_lsn) < needed.lsn) order by w.name"
    ))
    .bind(migration)
    .bind(names)
    .fetch_all(connection)
    .await
}
