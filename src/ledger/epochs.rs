//! Table `epochs`: how an epoch is opened, sealed, closed and drained.

use sqlx::{FromRow, PgConnection};

use super::blockers::{OpenTransaction, open_transaction, sharers};
use super::{locks, notifications, unprepared};
use crate::config::redact;

/// A move to the next epoch, with everything that changes in the same transaction.
#[derive(Debug)]
pub(crate) struct Move<'a> {
    pub(crate) migration: i32,
    pub(crate) fleet: &'a str,
    pub(crate) name: &'a str,
    /// The new epoch.
    pub(crate) epoch: i32,
    pub(crate) from: &'a str,
    pub(crate) to: &'a str,
    pub(crate) old_complete: bool,
    pub(crate) new_complete: bool,
    pub(crate) ramp_percent: u8,
    pub(crate) actor: &'a str,
    pub(crate) reason: &'a str,
}

/// Opens the next epoch and notifies the fleet. A second driver that decided the same move fails on the epoch's key.
///
/// Instances follow as soon as it is committed. After a crash that took the epoch back, they would refuse to work.
pub(crate) async fn open(tx: &mut PgConnection, step: &Move<'_>) -> Result<(), sqlx::Error> {
    unprepared::query(
        "select set_config('synchronous_commit', 'local', true) where current_setting('synchronous_commit') = 'off'",
    )
    .execute(&mut *tx)
    .await?;
    unprepared::query(
        "insert into cutover.epochs (migration_id, epoch, phase, previous_phase, actor, reason) \
         values ($1, $2, $3, $4, $5, $6)",
    )
    .bind(step.migration)
    .bind(step.epoch)
    .bind(step.to)
    .bind(step.from)
    .bind(redact(step.actor))
    .bind(redact(step.reason))
    .execute(&mut *tx)
    .await?;
    unprepared::query(
        "update cutover.migrations set epoch = $2, phase = $3, old_complete = $4, new_complete = $5, \
                ramp_percent = $6, waits_for = null, waits_since = null \
         where id = $1 and epoch = $2 - 1",
    )
    .bind(step.migration)
    .bind(step.epoch)
    .bind(step.to)
    .bind(step.old_complete)
    .bind(step.new_complete)
    .bind(i16::from(step.ramp_percent))
    .execute(&mut *tx)
    .await?;
    if step.from == "retire" {
        // An approval is for one stay in `retire`.
        unprepared::query("delete from cutover.approvals where migration_id = $1 and phase = 'contract'")
            .bind(step.migration)
            .execute(&mut *tx)
            .await?;
    }
    if step.to == "off" {
        // The new side is given up, and with it the rows that it lacks.
        unprepared::query("delete from cutover.repairs where migration_id = $1 and side = 'new'")
            .bind(step.migration)
            .execute(&mut *tx)
            .await?;
    }
    unprepared::query(
        "insert into cutover.history (fleet, migration, event, epoch, actor, reason) \
         values ($1, $2, $3, $4, $5, $6)",
    )
    .bind(step.fleet)
    .bind(step.name)
    .bind(format!("{} to {}", step.from, step.to))
    .bind(step.epoch)
    .bind(redact(step.actor))
    .bind(redact(step.reason))
    .execute(&mut *tx)
    .await?;
    notifications::send(tx, step.fleet).await
}

/// From now on the fence refuses the epoch.
pub(crate) async fn close(tx: &mut PgConnection, migration: i32, epoch: i32) -> Result<(), sqlx::Error> {
    unprepared::query(
        "update cutover.epochs set closed_at = clock_timestamp() \
         where migration_id = $1 and epoch = $2 and closed_at is null",
    )
    .bind(migration)
    .bind(epoch)
    .execute(tx)
    .await?;
    Ok(())
}

/// Waits until no transaction of a closed epoch is left, for as long as `lock_timeout` allows, and records that.
pub(crate) async fn drain(tx: &mut PgConnection, migration: i32, epoch: i32) -> Result<(), sqlx::Error> {
    unprepared::query("select pg_advisory_xact_lock($1, $2)")
        .bind(locks::EPOCH + migration)
        .bind(epoch)
        .execute(&mut *tx)
        .await?;
    unprepared::query(
        "update cutover.epochs set drained_at = clock_timestamp(), drained_lsn = cutover.wal_position() \
         where migration_id = $1 and epoch = $2 and drained_at is null and closed_at is not null",
    )
    .bind(migration)
    .bind(epoch)
    .execute(tx)
    .await?;
    Ok(())
}

/// From now on no transaction of the current epoch may leave a row to be repaired, and those that did have ended: rows
/// that are counted next are all that there will be. Otherwise such a transaction could commit after the next epoch has
/// begun to read that side.
///
/// `records_position`: also records the WAL position up to which standbys have every repaired row. The epoch then stays
/// sealed until they have replayed it.
pub(crate) async fn seal(
    tx: &mut PgConnection,
    fleet: &str,
    name: &str,
    records_position: bool,
) -> Result<(), sqlx::Error> {
    unprepared::query(
        "update cutover.epochs e set sealed_at = clock_timestamp() from cutover.migrations m \
         where m.fleet = $1 and m.name = $2 and e.migration_id = m.id and e.epoch = m.epoch",
    )
    .bind(fleet)
    .bind(name)
    .execute(&mut *tx)
    .await?;
    if !records_position {
        return Ok(());
    }
    // A statement of its own sees every row that was recorded before the lock was granted.
    unprepared::query(
        "update cutover.epochs e set sealed_lsn = cutover.wal_position() from cutover.migrations m \
         where m.fleet = $1 and m.name = $2 and e.migration_id = m.id and e.epoch = m.epoch and e.sealed_lsn is null \
           and not exists (select from cutover.repairs r where r.migration_id = m.id)",
    )
    .bind(fleet)
    .bind(name)
    .execute(tx)
    .await?;
    Ok(())
}

/// Transactions of `epoch`, if it is still the current one, may leave rows to be repaired again.
pub(crate) async fn unseal(tx: &mut PgConnection, migration: i32, epoch: i32) -> Result<(), sqlx::Error> {
    unprepared::query(
        "update cutover.epochs e set sealed_at = null, sealed_lsn = null from cutover.migrations m \
         where m.id = $1 and m.epoch = $2 and e.migration_id = m.id and e.epoch = m.epoch",
    )
    .bind(migration)
    .bind(epoch)
    .execute(tx)
    .await?;
    Ok(())
}

/// A transaction that holds an epoch's lock.
#[derive(Debug, FromRow)]
pub(crate) struct Holder {
    #[sqlx(flatten)]
    pub(crate) transaction: OpenTransaction,
    /// Its backend was terminated just now.
    pub(crate) terminated: bool,
}

/// The transactions of an epoch, oldest first. Terminates the backends of those that are at least `limit` seconds old,
/// where this role may. A prepared transaction has no backend, and only a person knows how it has to end. The epoch must not
/// be the current one.
pub(crate) async fn terminate_holders(
    tx: &mut PgConnection,
    migration: i32,
    epoch: i32,
    limit: i64,
) -> Result<Vec<Holder>, sqlx::Error> {
    unprepared::query_as(concat!(
        "with holder as (select ",
        open_transaction!(),
        ", a.pid is not null and (pg_has_role(a.usesysid, 'usage') or pg_has_role('pg_signal_backend', 'usage')) \
                 as may_terminate",
        sharers!(),
        " and exists (select from cutover.migrations m where m.id = $3 and m.epoch > $2)) \
         select pid, application, gid, owner, age, \
                case when may_terminate and age >= $4 then pg_terminate_backend(pid) else false end as terminated \
         from holder order by age desc",
    ))
    .bind(i64::from(locks::EPOCH + migration))
    .bind(i64::from(epoch))
    .bind(migration)
    .bind(limit)
    .fetch_all(tx)
    .await
}
