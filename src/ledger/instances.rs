//! Table `instances`: membership of a fleet under a lease on the database's clock.

use std::time::Duration;

use sqlx::PgConnection;

use super::{Ledger, unprepared};
use crate::config::redact;

/// What an instance says about itself when it joins.
#[derive(Debug)]
pub(crate) struct NewInstance<'a> {
    pub(crate) fleet: &'a str,
    pub(crate) name: &'a str,
    pub(crate) service: &'a str,
    pub(crate) version: &'a str,
    pub(crate) revision: &'a str,
    pub(crate) lease: Duration,
}

/// Inserts an instance that is not admitted yet, and returns its id.
///
/// Also deletes the fleet's instances whose lease ended an hour ago. A fleet without a migration has no driver that would
/// remove them.
pub(crate) async fn join(tx: &mut PgConnection, instance: &NewInstance<'_>) -> Result<i64, sqlx::Error> {
    unprepared::query(
        "delete from cutover.instances where fleet = $1 and lease_until < clock_timestamp() - interval '1 hour'",
    )
    .bind(instance.fleet)
    .execute(&mut *tx)
    .await?;
    unprepared::query_scalar(
        "insert into cutover.instances (fleet, name, service, version, revision, lease_until) \
         values ($1, $2, $3, $4, $5, clock_timestamp() + make_interval(secs => $6)) returning id",
    )
    .bind(instance.fleet)
    .bind(instance.name)
    .bind(instance.service)
    .bind(instance.version)
    .bind(instance.revision)
    .bind(instance.lease.as_secs_f64())
    .fetch_one(tx)
    .await
}

/// Tells this run of the server from others, of another server too: its data have not gone back to an earlier state meanwhile.
pub(crate) async fn server_run(tx: &mut PgConnection) -> Result<String, sqlx::Error> {
    unprepared::query_scalar(
        "select concat(pg_postmaster_start_time(), ' ', oid) from pg_database where datname = current_database()",
    )
    .fetch_one(tx)
    .await
}

/// Extends a lease that has not ended yet. `false`: the ledger no longer counts the instance as alive.
///
/// It is one message, so a process that is stopped in the middle leaves no lock on its row for the driver to wait for.
pub(crate) async fn renew(ledger: &Ledger, instance: i64, lease: Duration) -> Result<bool, sqlx::Error> {
    let statement = format!(
        "update cutover.instances set seen_at = clock_timestamp(), \
                lease_until = clock_timestamp() + make_interval(secs => {}) \
         where id = {instance} and lease_until > clock_timestamp() returning id",
        lease.as_secs_f64()
    );
    Ok(ledger.ask::<()>(statement).await?.len() == 1)
}

/// Records whether the instance is admitted, and why not. `false`: its lease has ended.
pub(crate) async fn admit(
    tx: &mut PgConnection,
    instance: i64,
    refusal: Option<&str>,
) -> Result<bool, sqlx::Error> {
    let updated = unprepared::query(
        "update cutover.instances set admitted = $2::text is null, refusal = $2 \
         where id = $1 and lease_until > clock_timestamp()",
    )
    .bind(instance)
    .bind(refusal.map(redact))
    .execute(tx)
    .await?;
    Ok(updated.rows_affected() == 1)
}

/// Removes an instance that has ended its operations.
pub(crate) async fn leave(tx: &mut PgConnection, instance: i64) -> Result<(), sqlx::Error> {
    unprepared::query("delete from cutover.instances where id = $1").bind(instance).execute(tx).await?;
    Ok(())
}

/// Removes the fleet's instances whose lease has ended on the database's clock.
///
/// An instance counts until it is removed, and one that was removed has to join again. So a clock that is set back cannot
/// revive one.
pub(crate) async fn remove_expired(tx: &mut PgConnection, fleet: &str) -> Result<(), sqlx::Error> {
    unprepared::query("delete from cutover.instances where fleet = $1 and lease_until < clock_timestamp()")
        .bind(fleet)
        .execute(tx)
        .await?;
    Ok(())
}
