//! How a migration ends: finished, finished from the start, abandoned, and archived.

use sqlx::PgConnection;

use super::{notifications, unprepared};
use crate::config::redact;

/// Records that the old side is gone. The migration is finished from then on: it waits for nothing, and no instance drives
/// it. `false`: it has ended before.
///
/// The transaction that drops the old side calls it first, and drops nothing if the answer is `false`. So the drop happens
/// once, also if a process that decided on it was paused meanwhile.
pub(crate) async fn finish(
    tx: &mut PgConnection,
    migration: i32,
    actor: &str,
    reason: &str,
) -> Result<bool, sqlx::Error> {
    let event = "old side dropped";
    end(tx, migration, "finished", event, actor, reason).await
}

/// Records that the new side is given up. `false`: it has ended before.
pub(crate) async fn abandon(
    tx: &mut PgConnection,
    migration: i32,
    actor: &str,
    reason: &str,
) -> Result<bool, sqlx::Error> {
    if !end(tx, migration, "abandoned", "abandoned", actor, reason).await? {
        return Ok(false);
    }
    unprepared::query("delete from cutover.repairs where migration_id = $1")
        .bind(migration)
        .execute(tx)
        .await?;
    Ok(true)
}

async fn end(
    tx: &mut PgConnection,
    migration: i32,
    ended_as: &str,
    event: &str,
    actor: &str,
    reason: &str,
) -> Result<bool, sqlx::Error> {
    let fleet: Option<String> = unprepared::query_scalar(
        "with ended as (update cutover.migrations \
             set ended_at = clock_timestamp(), ended_as = $2, waits_for = null, waits_since = null, \
                 desired = null, desired_by = null, driver = null, driver_until = null \
             where id = $1 and ended_at is null returning *) \
         insert into cutover.history (fleet, migration, event, epoch, actor, reason) \
         select fleet, name, $3, epoch, $4, $5 from ended returning fleet",
    )
    .bind(migration)
    .bind(ended_as)
    .bind(event)
    .bind(redact(actor))
    .bind(redact(reason))
    .fetch_optional(&mut *tx)
    .await?;
    match fleet {
        Some(fleet) => notifications::send(tx, &fleet).await.map(|()| true),
        None => Ok(false),
    }
}

/// Whether the migration has never left its first epoch, and nothing was made for it.
pub(crate) async fn is_untouched(tx: &mut PgConnection, migration: i32) -> Result<bool, sqlx::Error> {
    unprepared::query_scalar(
        "select exists (select from cutover.migrations m where m.id = $1 and m.epoch = 1 and m.phase = 'off' \
             and m.ended_at is null and not exists (select from cutover.sides s where s.migration_id = m.id))",
    )
    .bind(migration)
    .fetch_one(tx)
    .await
}

/// Records that the migration is finished from the start, because the database has only the new side. `false`: it is not
/// [untouched](is_untouched).
///
/// The first epoch becomes one in `contract`. An instance that works at it in `off` is refused by the fence, which compares
/// the phase, and joins again. The caller holds the fleet's lock for moves.
pub(crate) async fn baseline(
    tx: &mut PgConnection,
    migration: i32,
    actor: &str,
    reason: &str,
) -> Result<bool, sqlx::Error> {
    if !is_untouched(tx, migration).await? {
        return Ok(false);
    }
    unprepared::query(
        "update cutover.epochs set phase = 'contract', actor = $2, reason = $3 \
         where migration_id = $1 and epoch = 1",
    )
    .bind(migration)
    .bind(redact(actor))
    .bind(redact(reason))
    .execute(&mut *tx)
    .await?;
    unprepared::query(
        "update cutover.migrations set phase = 'contract', old_complete = false, new_complete = true \
         where id = $1",
    )
    .bind(migration)
    .execute(&mut *tx)
    .await?;
    end(tx, migration, "finished", "finished from the start", actor, reason).await
}

/// The instances whose lease has not ended and whose build declares the migration.
pub(crate) async fn declared_by(tx: &mut PgConnection, migration: i32) -> Result<Vec<String>, sqlx::Error> {
    unprepared::query_scalar(
        "select i.name from cutover.instances i join cutover.acknowledgements a on a.instance_id = i.id \
         where a.migration_id = $1 and i.lease_until > clock_timestamp() order by i.name",
    )
    .bind(migration)
    .fetch_all(tx)
    .await
}

/// All rows about the migration as JSON, as the archive keeps them.
pub(crate) async fn record(tx: &mut PgConnection, migration: i32) -> Result<String, sqlx::Error> {
    unprepared::query_scalar(
        "select jsonb_build_object( \
             'migration', to_jsonb(m), \
             'history', (select coalesce(jsonb_agg(to_jsonb(h) order by h.id), '[]') from cutover.history h \
                 where h.fleet = m.fleet and h.migration = m.name), \
             'epochs', (select coalesce(jsonb_agg(to_jsonb(e) order by e.epoch), '[]') from cutover.epochs e \
                 where e.migration_id = m.id), \
             'jobs', (select coalesce(jsonb_agg(to_jsonb(j) order by j.id), '[]') from cutover.jobs j \
                 where j.migration_id = m.id), \
             'sides', (select coalesce(jsonb_agg(to_jsonb(s) order by s.side), '[]') from cutover.sides s \
                 where s.migration_id = m.id), \
             'plans', (select coalesce(jsonb_agg(to_jsonb(p) order by p.published_at), '[]') from cutover.plans p \
                 where p.migration_id = m.id))::text \
         from cutover.migrations m where m.id = $1",
    )
    .bind(migration)
    .fetch_one(tx)
    .await
}

/// Moves all rows about an ended migration to the archive. Its name is free from then on.
pub(crate) async fn archive(
    tx: &mut PgConnection,
    migration: i32,
    actor: &str,
    record: &str,
) -> Result<(), sqlx::Error> {
    unprepared::query(
        "insert into cutover.archive (fleet, name, ended_as, archived_by, record) \
         select fleet, name, ended_as, $2, $3::text::jsonb from cutover.migrations where id = $1",
    )
    .bind(migration)
    .bind(redact(actor))
    .bind(record)
    .execute(&mut *tx)
    .await?;
    unprepared::query(
        "delete from cutover.history h using cutover.migrations m \
         where m.id = $1 and h.fleet = m.fleet and h.migration = m.name",
    )
    .bind(migration)
    .execute(&mut *tx)
    .await?;
    // The migration and its epochs refer to each other; these references are checked at the end of the transaction, or go
    // from a later epoch to an earlier one, which one statement deletes together.
    for delete in [
        "delete from cutover.acknowledgements where migration_id = $1",
        "delete from cutover.approvals where migration_id = $1",
        "delete from cutover.jobs where migration_id = $1",
        "delete from cutover.bad_rows where migration_id = $1",
        "delete from cutover.repairs where migration_id = $1",
        "delete from cutover.external_write_events where migration_id = $1",
        "delete from cutover.external_writes where migration_id = $1",
        "delete from cutover.epochs where migration_id = $1",
        "delete from cutover.migrations where id = $1",
    ] {
        unprepared::query(delete).bind(migration).execute(&mut *tx).await?;
    }
    Ok(())
}
