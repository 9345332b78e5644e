//! What people read from the ledger. Every function only reads.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgConnection, PgExecutor, Row};

use super::unprepared;

/// The state of a migration: its phase, what it waits for, its instances and its latest job.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MigrationReport {
    /// The fleet that it belongs to.
    pub fleet: String,
    /// Its name.
    pub name: String,
    /// The current epoch.
    pub epoch: i32,
    /// The current phase.
    pub phase: String,
    /// The part of the keys that `ramp` reads from the new side, in percent; `None` in other phases.
    pub ramp_percent: Option<i16>,
    /// Seconds since the current epoch was opened.
    pub phase_age_seconds: f64,
    /// The phase requested through SQL or the command line.
    pub desired: Option<String>,
    /// How it ended: `finished` (the old side is gone, and `DualWrite` can leave the code) or `abandoned` (the new side
    /// was given up). `None`: it has not ended.
    pub ended_as: Option<String>,
    /// Seconds since it ended.
    pub ended_seconds: Option<f64>,
    /// What it waits for, as text.
    pub waits_for: Option<String>,
    /// Seconds for which it has waited for that.
    pub waits_seconds: Option<f64>,
    /// Who paused its backfills and scans.
    pub paused_by: Option<String>,
    /// Seconds since they were paused.
    pub paused_seconds: Option<f64>,
    /// The instance that drives it.
    pub driver: Option<String>,
    /// The instances of the fleet.
    pub instances: Vec<InstanceReport>,
    /// The latest backfill or scan.
    pub work: Option<WorkReport>,
}

impl FromRow<'_, PgRow> for MigrationReport {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            fleet: row.try_get("fleet")?,
            name: row.try_get("name")?,
            epoch: row.try_get("epoch")?,
            phase: row.try_get("phase")?,
            ramp_percent: row.try_get("ramp_percent")?,
            phase_age_seconds: row.try_get("phase_age_seconds")?,
            desired: row.try_get("desired")?,
            ended_as: row.try_get("ended_as")?,
            ended_seconds: row.try_get("ended_seconds")?,
            waits_for: row.try_get("waits_for")?,
            waits_seconds: row.try_get("waits_seconds")?,
            paused_by: row.try_get("paused_by")?,
            paused_seconds: row.try_get("paused_seconds")?,
            driver: row.try_get("driver")?,
            instances: json(row, "instances")?.unwrap_or_default(),
            work: json(row, "work")?,
        })
    }
}

/// A column with JSON as text.
fn json<T: DeserializeOwned>(row: &PgRow, column: &str) -> Result<Option<T>, sqlx::Error> {
    let text: Option<String> = row.try_get(column)?;
    text.map(|text| serde_json::from_str(&text))
        .transpose()
        .map_err(|error| sqlx::Error::ColumnDecode { index: column.to_owned(), source: error.into() })
}

/// An instance as the ledger knows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct InstanceReport {
    /// Its name.
    pub name: String,
    /// The version that it runs, as canary analysis knows it.
    pub version: String,
    /// Whether it is admitted, that is, serves.
    pub admitted: bool,
    /// Why it is not admitted.
    pub refusal: Option<String>,
    /// The phases that its build supports; `None` if the build does not declare the migration.
    pub range: Option<String>,
    /// The epoch that it acknowledged last.
    pub acknowledged: Option<i32>,
    /// Its open operations at older epochs, as last reported.
    pub older_open: Option<i32>,
    /// Seconds for which its acknowledgement has waited for these.
    pub waits_seconds: Option<f64>,
    /// Seconds since it renewed its lease.
    pub seen_seconds: f64,
    /// Seconds until its lease expires; negative if it has expired.
    pub lease_seconds: f64,
}

/// Progress of a backfill or scan.
#[derive(Debug, Clone, Serialize, Deserialize, FromRow)]
#[non_exhaustive]
pub struct WorkReport {
    /// `backfill`, `reverse_backfill` or `scan`.
    pub kind: String,
    /// Rows visited.
    pub rows_done: i64,
    /// Rows in the table, as counted or estimated at the start.
    pub rows_total: i64,
    /// Rows changed.
    pub rows_changed: i64,
    /// Rows whose sides differ.
    pub differences: i64,
    /// Seconds since the start, or from start to end.
    pub seconds: f64,
    /// Whether it has ended.
    pub finished: bool,
    /// Seconds since the end.
    pub ended_seconds: Option<f64>,
    /// Why it is throttled at the moment.
    pub throttled_by: Option<String>,
}

impl WorkReport {
    /// Seconds left at the average rate so far; `None` if it has ended or no row is done yet.
    pub fn seconds_left(&self) -> Option<f64> {
        let open = !self.finished && self.rows_done > 0;
        open.then(|| (self.rows_total - self.rows_done).max(0) as f64 * self.seconds / self.rows_done as f64)
    }
}

/// The instances of the fleet of migration `m`.
macro_rules! instances {
    () => {
        "select i.name, i.version, i.admitted, i.refusal, \
                case when a.min_phase = a.max_phase then a.min_phase else a.min_phase || '..=' || a.max_phase end as range, \
                a.epoch as acknowledged, a.older_open, \
                extract(epoch from clock_timestamp() - a.waits_since)::float8 as waits_seconds, \
                extract(epoch from clock_timestamp() - i.seen_at)::float8 as seen_seconds, \
                extract(epoch from i.lease_until - clock_timestamp())::float8 as lease_seconds \
         from cutover.instances i \
         left join cutover.acknowledgements a on a.instance_id = i.id and a.migration_id = m.id \
         where i.fleet = m.fleet order by i.name, i.id"
    };
}

/// The latest job of migration `m`.
macro_rules! job {
    () => {
        "select j.kind, j.rows_done, j.rows_total, j.rows_changed, j.differences, j.finished_at is not null as finished, \
                extract(epoch from clock_timestamp() - j.finished_at)::float8 as ended_seconds, j.throttled_by, \
                extract(epoch from coalesce(j.finished_at, clock_timestamp()) - j.started_at)::float8 as seconds \
         from cutover.jobs j where j.migration_id = m.id order by j.id desc limit 1"
    };
}
/// Reports on the migrations of this name (`name` or `fleet/name`), or on all.
///
/// It is one statement, which needs no transaction, because pages and terminals repeat it every second or two.
pub(crate) async fn migrations(
    executor: impl PgExecutor<'_>,
    only: Option<&str>,
) -> Result<Vec<MigrationReport>, sqlx::Error> {
    unprepared::query_as(concat!(
        "select m.fleet, m.name, m.epoch, m.phase, case m.phase when 'ramp' then m.ramp_percent end as ramp_percent, \
                m.desired, m.ended_as, m.waits_for, m.paused_by, i.name as driver, \
                extract(epoch from clock_timestamp() - m.ended_at)::float8 as ended_seconds, \
                extract(epoch from clock_timestamp() - e.opened_at)::float8 as phase_age_seconds, \
                extract(epoch from clock_timestamp() - m.waits_since)::float8 as waits_seconds, \
                extract(epoch from clock_timestamp() - m.paused_at)::float8 as paused_seconds, \
                (select json_agg(r)::text from (",
        instances!(),
        ") r) as instances, (select to_json(r)::text from (",
        job!(),
        ") r) as work \
         from cutover.migrations m \
         join cutover.epochs e on e.migration_id = m.id and e.epoch = m.epoch \
         left join cutover.instances i on i.id = m.driver and m.driver_until > clock_timestamp() \
         where $1::text is null or m.name = $1 or m.fleet || '/' || m.name = $1 order by m.fleet, m.name"
    ))
    .bind(only)
    .fetch_all(executor)
    .await
}

/// The latest job of a migration.
pub(crate) async fn latest_work(
    tx: &mut PgConnection,
    migration: i32,
) -> Result<Option<WorkReport>, sqlx::Error> {
    let query =
        concat!("select w.* from cutover.migrations m join lateral (", job!(), ") w on true where m.id = $1");
    unprepared::query_as(query).bind(migration).fetch_optional(tx).await
}

/// A copy of all rows that has ended.
#[derive(Debug, FromRow)]
pub(crate) struct PastCopy {
    pub(crate) rows: i64,
    pub(crate) seconds: f64,
}

/// The latest copy of all rows of a migration that has ended, in either direction.
pub(crate) async fn latest_copy(
    tx: &mut PgConnection,
    migration: i32,
) -> Result<Option<PastCopy>, sqlx::Error> {
    unprepared::query_as(
        "select rows_total as rows, extract(epoch from finished_at - started_at)::float8 as seconds \
         from cutover.jobs where migration_id = $1 and kind <> 'scan' and finished_at is not null \
         order by id desc limit 1",
    )
    .bind(migration)
    .fetch_optional(tx)
    .await
}

/// A row that the latest scan found to differ.
#[derive(Debug, Clone, Serialize, FromRow)]
#[non_exhaustive]
pub struct Difference {
    /// The row's key as text, one element per column.
    pub key: Vec<String>,
    /// `missing` (not on the new side), `extra` (only on the new side), `different`, or `way_back` (mapping the value
    /// to the new side and back changes it).
    pub what: String,
    /// The value computed from the old side, as JSON; for `way_back` the value that comes back. `"…"` if the plan hides
    /// values.
    pub expected: Option<String>,
    /// The value on the new side, as JSON.
    pub found: Option<String>,
}

/// What the latest scan found.
pub(crate) async fn differences(
    tx: &mut PgConnection,
    migration: i32,
    limit: u32,
) -> Result<Vec<Difference>, sqlx::Error> {
    unprepared::query_as(
        "select key, what, expected::text, found::text from cutover.differences where job_id = ( \
             select max(j.id) from cutover.jobs j where j.migration_id = $1 and j.kind = 'scan' \
                 and (j.finished_at is not null or j.differences > 0)) \
         order by ctid limit $2",
    )
    .bind(migration)
    .bind(i64::from(limit))
    .fetch_all(tx)
    .await
}

/// A row that a backfill or scan could not map and set aside.
#[derive(Debug, Clone, Serialize, FromRow)]
#[non_exhaustive]
pub struct BadRow {
    /// `backfill`, `reverse_backfill` or `scan`.
    pub kind: String,
    /// The row's key as text, one element per column.
    pub key: Vec<String>,
    /// Why it could not be mapped.
    pub error: String,
}

/// The rows that could not be mapped, oldest first.
pub(crate) async fn bad_rows(
    tx: &mut PgConnection,
    migration: i32,
    limit: u32,
) -> Result<Vec<BadRow>, sqlx::Error> {
    unprepared::query_as(
        "select kind, key, error from cutover.bad_rows where migration_id = $1 order by seen_at limit $2",
    )
    .bind(migration)
    .bind(i64::from(limit))
    .fetch_all(tx)
    .await
}

/// A row of which one side is behind the other.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct RepairReport {
    /// The fleet that the migration belongs to.
    pub fleet: String,
    /// The migration.
    pub migration: String,
    /// The side that is behind: `old` or `new`.
    pub side: String,
    /// The row's key; an array if it has several columns.
    pub key: serde_json::Value,
    /// The error of the write or of the latest attempt to repair the row.
    pub error: String,
    /// When the row fell behind, as ISO 8601 in the database's time zone.
    pub since: String,
    /// Seconds since then.
    pub age_seconds: f64,
    /// Failed attempts to repair it.
    pub attempts: i32,
    /// Seconds until the next attempt; `None` if the library has given up.
    pub next_try_seconds: Option<f64>,
}

impl FromRow<'_, PgRow> for RepairReport {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let key: String = row.try_get("key")?;
        Ok(Self {
            fleet: row.try_get("fleet")?,
            migration: row.try_get("migration")?,
            side: row.try_get("side")?,
            key: serde_json::from_str(&key).unwrap_or(serde_json::Value::String(key)),
            error: row.try_get("error")?,
            since: row.try_get("since")?,
            age_seconds: row.try_get("age")?,
            attempts: row.try_get("attempts")?,
            next_try_seconds: row.try_get("next_try")?,
        })
    }
}

/// The rows to repair, oldest first: of one migration, or of all.
pub(crate) async fn repairs(
    tx: &mut PgConnection,
    only: Option<i32>,
    limit: u32,
) -> Result<Vec<RepairReport>, sqlx::Error> {
    unprepared::query_as(
        "select m.fleet, m.name as migration, r.side, r.key::text as key, r.error, r.attempts, \
                to_char(r.since, 'YYYY-MM-DD\"T\"HH24:MI:SS.MSOF') as since, \
                extract(epoch from clock_timestamp() - r.since)::float8 as age, \
                case when not r.dead then greatest(extract(epoch from r.next_try_at - clock_timestamp()), 0)::float8 \
                end as next_try \
         from cutover.repairs r join cutover.migrations m on m.id = r.migration_id \
         where $1::integer is null or m.id = $1 order by r.since limit $2",
    )
    .bind(only)
    .bind(i64::from(limit))
    .fetch_all(tx)
    .await
}

/// How many rows of the migration are to be repaired.
pub(crate) async fn count_repairs(tx: &mut PgConnection, migration: i32) -> Result<i64, sqlx::Error> {
    unprepared::query_scalar("select count(*) from cutover.repairs where migration_id = $1")
        .bind(migration)
        .fetch_one(tx)
        .await
}

/// An application that writes a migrating table without the library.
#[derive(Debug, Clone, Serialize, FromRow)]
#[non_exhaustive]
pub struct ExternalWriteReport {
    /// The fleet that the migration belongs to.
    pub fleet: String,
    /// The migration.
    pub migration: String,
    /// The connection's `application_name`.
    pub application: String,
    /// The role that logged in.
    pub role: String,
    /// Transactions that wrote.
    pub transactions: i64,
    /// Those of them whose writes the guard trigger could not mirror to the new side.
    pub unmirrored: i64,
    /// When the first one wrote, as ISO 8601 in the database's time zone.
    pub first_seen: String,
    /// When the last one wrote.
    pub last_seen: String,
    /// Seconds since then.
    pub age_seconds: f64,
}

/// External writers, latest first: of one migration, or of all.
pub(crate) async fn external_writes(
    tx: &mut PgConnection,
    only: Option<i32>,
    limit: u32,
) -> Result<Vec<ExternalWriteReport>, sqlx::Error> {
    unprepared::query_as(
        "select m.fleet, m.name as migration, application, role, \
                sum(transactions)::bigint as transactions, sum(unmirrored)::bigint as unmirrored, \
                to_char(min(first_seen), 'YYYY-MM-DD\"T\"HH24:MI:SSOF') as first_seen, \
                to_char(max(last_seen), 'YYYY-MM-DD\"T\"HH24:MI:SSOF') as last_seen, \
                extract(epoch from clock_timestamp() - max(last_seen))::float8 as age_seconds \
         from (select migration_id, application, role, transactions, unmirrored, first_seen, last_seen \
                   from cutover.external_writes \
               union all select migration_id, application, role, 1, (not mirrored)::integer, at, at \
                   from cutover.external_write_events) as seen \
         join cutover.migrations m on m.id = seen.migration_id \
         where $1::integer is null or m.id = $1 \
         group by m.fleet, m.name, application, role order by max(last_seen) desc limit $2",
    )
    .bind(only)
    .bind(i64::from(limit))
    .fetch_all(tx)
    .await
}
