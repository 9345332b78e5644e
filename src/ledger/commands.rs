//! What people change in the ledger. Every function runs in the caller's transaction.

use sqlx::{FromRow, PgConnection};

use super::unprepared;
use crate::config::redact;

/// A migration that a person named.
#[derive(Debug, FromRow)]
pub(crate) struct NamedMigration {
    pub(crate) id: i32,
    pub(crate) fleet: String,
    pub(crate) name: String,
    pub(crate) phase: String,
    pub(crate) epoch: i32,
    /// `finished` or `abandoned`; `None`: it has not ended.
    pub(crate) ended_as: Option<String>,
}

macro_rules! find {
    () => {
        "select id, fleet, name, phase, epoch, ended_as from cutover.migrations \
         where name = $1 or fleet || '/' || name = $1 order by id"
    };
}

/// The migrations with this name (`name` or `fleet/name`). Several fleets can use the same name.
pub(crate) async fn find(tx: &mut PgConnection, name: &str) -> Result<Vec<NamedMigration>, sqlx::Error> {
    unprepared::query_as(find!()).bind(name).fetch_all(tx).await
}

/// Like [`find`], and locks the rows, so that epoch and phase stay the same until the transaction ends.
pub(crate) async fn find_and_lock(
    tx: &mut PgConnection,
    name: &str,
) -> Result<Vec<NamedMigration>, sqlx::Error> {
    unprepared::query_as(concat!(find!(), " for no key update")).bind(name).fetch_all(tx).await
}

/// Every migration in the ledger, as `fleet/name`.
pub(crate) async fn names(tx: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    unprepared::query_scalar("select fleet || '/' || name from cutover.migrations order by id")
        .fetch_all(tx)
        .await
}

/// Sets the desired phase.
pub(crate) async fn set_desired(
    tx: &mut PgConnection,
    migration: i32,
    desired: &str,
    actor: &str,
) -> Result<(), sqlx::Error> {
    unprepared::query("update cutover.migrations set desired = $2, desired_by = $3 where id = $1")
        .bind(migration)
        .bind(desired)
        .bind(redact(actor))
        .execute(tx)
        .await?;
    Ok(())
}

/// Approves `contract`. A second approval replaces the first. Returns when it expires, as ISO 8601.
pub(crate) async fn approve(
    tx: &mut PgConnection,
    migration: i32,
    actor: &str,
    reason: &str,
) -> Result<String, sqlx::Error> {
    unprepared::query_scalar(
        "insert into cutover.approvals (migration_id, phase, actor, reason) values ($1, 'contract', $2, $3) \
         on conflict (migration_id, phase) do update \
             set actor = excluded.actor, reason = excluded.reason, given_at = excluded.given_at, \
                 expires_at = excluded.expires_at \
         returning to_char(expires_at, 'YYYY-MM-DD\"T\"HH24:MI:SSOF')",
    )
    .bind(migration)
    .bind(redact(actor))
    .bind(redact(reason))
    .fetch_one(tx)
    .await
}

/// Pauses backfills and scans. Returns `false` if they are paused already; the first actor stays recorded.
pub(crate) async fn pause(tx: &mut PgConnection, migration: i32, actor: &str) -> Result<bool, sqlx::Error> {
    let changed = unprepared::query(
        "update cutover.migrations set paused_at = clock_timestamp(), paused_by = $2 \
         where id = $1 and paused_at is null",
    )
    .bind(migration)
    .bind(redact(actor))
    .execute(tx)
    .await?;
    Ok(changed.rows_affected() == 1)
}

/// Resumes backfills and scans. Returns `false` if they are not paused.
pub(crate) async fn resume(tx: &mut PgConnection, migration: i32) -> Result<bool, sqlx::Error> {
    let changed = unprepared::query(
        "update cutover.migrations set paused_at = null, paused_by = null \
         where id = $1 and paused_at is not null",
    )
    .bind(migration)
    .execute(tx)
    .await?;
    Ok(changed.rows_affected() == 1)
}

/// Makes every repair of the migration due now, also those that were given up. Returns how many there are.
pub(crate) async fn retry_repairs(tx: &mut PgConnection, migration: i32) -> Result<u64, sqlx::Error> {
    let retried = unprepared::query(
        "update cutover.repairs set attempts = 0, dead = false, next_try_at = clock_timestamp() \
         where migration_id = $1",
    )
    .bind(migration)
    .execute(tx)
    .await?;
    Ok(retried.rows_affected())
}
