//! What people see: where migrations are, what they wait for, and what happened.

use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgConnection, Row};

use super::commands::{AdminError, find};
use crate::ledger::{Ledger, unprepared};

/// Where a migration is, what it waits for, and on whom.
#[derive(Debug, Clone, Serialize)]
pub struct MigrationReport {
    /// The fleet that it belongs to.
    pub fleet: String,
    /// Its name.
    pub name: String,
    /// The current epoch.
    pub epoch: i32,
    /// Its phase.
    pub phase: String,
    /// Seconds since the epoch was opened.
    pub phase_age_seconds: f64,
    /// What was asked for by SQL or command line.
    pub desired: Option<String>,
    /// What it waits for, in words.
    pub waits_for: Option<String>,
    /// Seconds since it waits for that.
    pub waits_seconds: Option<f64>,
    /// Who holds up the work on its rows.
    pub paused_by: Option<String>,
    /// Seconds since it is held up.
    pub paused_seconds: Option<f64>,
    /// The instance that drives it.
    pub driver: Option<String>,
    /// The fleet's instances.
    pub instances: Vec<InstanceReport>,
    /// The last piece of long work.
    pub work: Option<WorkReport>,
}

/// An instance, as the ledger sees it.
#[derive(Debug, Clone, Serialize, FromRow)]
pub struct InstanceReport {
    /// Its name.
    pub name: String,
    /// The version it runs, as canary analysis knows it.
    pub version: String,
    /// Whether it serves.
    pub admitted: bool,
    /// Why it isn't admitted.
    pub refusal: Option<String>,
    /// The phases its build can run; `None` where it doesn't know the migration.
    pub range: Option<String>,
    /// The epoch it acknowledged last.
    pub acknowledged: Option<i32>,
    /// Its operations at older epochs, as last reported.
    pub older_open: Option<i32>,
    /// Seconds since it waits for them.
    pub waits_seconds: Option<f64>,
    /// Seconds since it was last heard of.
    pub seen_seconds: f64,
    /// Seconds until its lease runs out; below zero once it has.
    pub lease_seconds: f64,
}

/// How far a piece of long work is.
#[derive(Debug, Clone, Serialize, FromRow)]
pub struct WorkReport {
    /// `backfill`, `reverse_backfill` or `scan`.
    pub kind: String,
    /// Rows seen.
    pub rows_done: i64,
    /// Rows there are, as counted or estimated at its beginning.
    pub rows_total: i64,
    /// Rows changed.
    pub rows_changed: i64,
    /// Rows whose sides differ.
    pub differences: i64,
    /// Seconds since its beginning, or that it took.
    pub seconds: f64,
    /// Whether it has come to its end.
    pub finished: bool,
    /// Seconds since its end.
    pub ended_seconds: Option<f64>,
    /// Why nothing is done just now, where the throttle holds it up.
    pub throttled_by: Option<String>,
}

impl WorkReport {
    /// Seconds that are left at the rate so far; `None` when there is nothing to reckon with.
    pub fn seconds_left(&self) -> Option<f64> {
        let open = !self.finished && self.rows_done > 0;
        open.then(|| (self.rows_total - self.rows_done).max(0) as f64 * self.seconds / self.rows_done as f64)
    }
}

/// Every migration in the ledger, or the one of this name (`name` or `fleet/name`).
///
/// # Errors
///
/// [`AdminError`]; an unknown name is one.
///
/// # Cancel safety
///
/// Safe: reads only.
pub async fn report(ledger: &Ledger, only: Option<&str>) -> Result<Vec<MigrationReport>, AdminError> {
    let mut tx = ledger.begin().await?;
    if let Some(name) = only {
        find(&mut tx, name).await?;
    }
    let rows = unprepared::query(
        "select m.id, m.fleet, m.name, m.epoch, m.phase, m.desired, m.waits_for, m.paused_by, i.name as driver, \
                extract(epoch from clock_timestamp() - e.opened_at)::float8 as age, \
                extract(epoch from clock_timestamp() - m.waits_since)::float8 as waits, \
                extract(epoch from clock_timestamp() - m.paused_at)::float8 as paused \
         from cutover.migrations m \
         join cutover.epochs e on e.migration_id = m.id and e.epoch = m.epoch \
         left join cutover.instances i on i.id = m.driver and m.driver_until > clock_timestamp() \
         where $1::text is null or m.name = $1 or m.fleet || '/' || m.name = $1 order by m.fleet, m.name",
    )
    .bind(only)
    .fetch_all(&mut *tx)
    .await?;
    let mut reports = Vec::new();
    for row in rows {
        reports.push(migration_report(&mut tx, &row).await?);
    }
    Ok(reports)
}

async fn migration_report(tx: &mut PgConnection, row: &PgRow) -> Result<MigrationReport, sqlx::Error> {
    let (id, fleet): (i32, String) = (row.try_get("id")?, row.try_get("fleet")?);
    let instances = unprepared::query_as(
        "select i.name, i.version, i.admitted, i.refusal, \
                case when a.min_phase = a.max_phase then a.min_phase else a.min_phase || '..=' || a.max_phase end as range, \
                a.epoch as acknowledged, a.older_open, \
                extract(epoch from clock_timestamp() - a.waits_since)::float8 as waits_seconds, \
                extract(epoch from clock_timestamp() - i.seen_at)::float8 as seen_seconds, \
                extract(epoch from i.lease_until - clock_timestamp())::float8 as lease_seconds \
         from cutover.instances i \
         left join cutover.acknowledgements a on a.instance_id = i.id and a.migration_id = $2 \
         where i.fleet = $1 order by i.name, i.id",
    )
    .bind(&fleet)
    .bind(id)
    .fetch_all(&mut *tx)
    .await?;
    let work = unprepared::query_as(
        "select kind, rows_done, rows_total, rows_changed, differences, finished_at is not null as finished, \
                extract(epoch from clock_timestamp() - finished_at)::float8 as ended_seconds, throttled_by, \
                extract(epoch from coalesce(finished_at, clock_timestamp()) - started_at)::float8 as seconds \
         from cutover.jobs where migration_id = $1 order by id desc limit 1",
    )
    .bind(id)
    .fetch_optional(&mut *tx)
    .await?;
    Ok(MigrationReport {
        fleet,
        name: row.try_get("name")?,
        epoch: row.try_get("epoch")?,
        phase: row.try_get("phase")?,
        phase_age_seconds: row.try_get("age")?,
        desired: row.try_get("desired")?,
        waits_for: row.try_get("waits_for")?,
        waits_seconds: row.try_get("waits")?,
        paused_by: row.try_get("paused_by")?,
        paused_seconds: row.try_get("paused")?,
        driver: row.try_get("driver")?,
        instances,
        work,
    })
}

/// A row on which the last scan found that the new side can't be relied on.
#[derive(Debug, Clone, Serialize, FromRow)]
pub struct Difference {
    /// The row's key as text, column by column.
    pub key: Vec<String>,
    /// `missing` on the new side, `extra` there, `different`, or `way_back`: mapped back and forth again the value
    /// is another one.
    pub what: String,
    /// What the old side says (for `way_back`: what comes back), as JSON; `"…"` where values are not to be shown.
    pub expected: Option<String>,
    /// What the new side holds, as JSON.
    pub found: Option<String>,
}

/// What the latest scan of this migration (`name` or `fleet/name`) found, up to `limit` rows of the first thousand.
///
/// # Errors
///
/// [`AdminError`]; an unknown migration is one.
///
/// # Cancel safety
///
/// Safe: reads only.
pub async fn differences(ledger: &Ledger, name: &str, limit: u32) -> Result<Vec<Difference>, AdminError> {
    let mut tx = ledger.begin().await?;
    let found = find(&mut tx, name).await?;
    Ok(unprepared::query_as(
        "select key, what, expected::text, found::text from cutover.differences where job_id = ( \
             select max(j.id) from cutover.jobs j where j.migration_id = $1 and j.kind = 'scan' \
                 and (j.finished_at is not null or j.differences > 0)) \
         order by ctid limit $2",
    )
    .bind(found.id)
    .bind(i64::from(limit))
    .fetch_all(&mut *tx)
    .await?)
}

/// A row that work on the data has set aside.
#[derive(Debug, Clone, Serialize, FromRow)]
pub struct BadRow {
    /// `backfill`, `reverse_backfill` or `scan`.
    pub kind: String,
    /// The row's key as text, column by column.
    pub key: Vec<String>,
    /// Why it could not be mapped.
    pub error: String,
}

/// The rows of this migration (`name` or `fleet/name`) that could not be mapped, up to `limit`, the first seen first.
/// They are tried again while the work goes on, and it does not end without them.
///
/// # Errors
///
/// [`AdminError`]; an unknown migration is one.
///
/// # Cancel safety
///
/// Safe: reads only.
pub async fn bad_rows(ledger: &Ledger, name: &str, limit: u32) -> Result<Vec<BadRow>, AdminError> {
    let mut tx = ledger.begin().await?;
    let found = find(&mut tx, name).await?;
    Ok(unprepared::query_as(
        "select kind, key, error from cutover.bad_rows where migration_id = $1 order by seen_at limit $2",
    )
    .bind(found.id)
    .bind(i64::from(limit))
    .fetch_all(&mut *tx)
    .await?)
}

/// Something that happened.
#[derive(Debug, Clone, Serialize, FromRow)]
pub struct Event {
    /// When, in the database's format and time zone.
    pub at: String,
    /// In which fleet.
    pub fleet: String,
    /// To which migration.
    pub migration: Option<String>,
    /// What.
    pub event: String,
    /// The epoch that it led to, or happened at.
    pub epoch: Option<i32>,
    /// Who.
    pub actor: String,
    /// Why.
    pub reason: String,
}

/// What happened lately, the latest first.
///
/// # Errors
///
/// [`AdminError`]; an unknown migration is one.
///
/// # Cancel safety
///
/// Safe: reads only.
pub async fn history(ledger: &Ledger, only: Option<&str>, limit: u32) -> Result<Vec<Event>, AdminError> {
    let mut tx = ledger.begin().await?;
    if let Some(name) = only {
        find(&mut tx, name).await?;
    }
    Ok(unprepared::query_as(
        "select to_char(at, 'YYYY-MM-DD\"T\"HH24:MI:SS.MSOF') as at, fleet, migration, event, epoch, actor, reason \
         from cutover.history where $1::text is null or migration = $1 or fleet || '/' || migration = $1 \
         order by id desc limit $2",
    )
    .bind(only)
    .bind(i64::from(limit))
    .fetch_all(&mut *tx)
    .await?)
}
