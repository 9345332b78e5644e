//! What people ask about rows whose sides are known to differ.

use serde::Serialize;
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::commands::{AdminError, find, record};
use crate::ledger::{Ledger, unprepared};

/// A row of which one side is behind the other, until that has been made good.
#[derive(Debug, Clone, Serialize)]
pub struct RepairReport {
    /// The fleet that the migration belongs to.
    pub fleet: String,
    /// The migration.
    pub migration: String,
    /// The side that is behind: `old` or `new`.
    pub side: String,
    /// The row's key; an array where it has several columns.
    pub key: serde_json::Value,
    /// What failed, when it was written or when it was last tried again.
    pub error: String,
    /// Since when, in the database's format and time zone.
    pub since: String,
    /// Seconds since then.
    pub age_seconds: f64,
    /// How often it was tried again in vain.
    pub attempts: i32,
    /// Seconds until it is tried again; `None` when it has been given up.
    pub next_try_seconds: Option<f64>,
}

impl RepairReport {
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

/// The rows that wait for repair, the oldest first: of every migration, or of the one of this name.
///
/// # Errors
///
/// [`AdminError`]; an unknown name is one.
///
/// # Cancel safety
///
/// Safe: reads only.
pub async fn repairs(
    ledger: &Ledger,
    only: Option<&str>,
    limit: u32,
) -> Result<Vec<RepairReport>, AdminError> {
    let mut tx = ledger.begin().await?;
    if let Some(name) = only {
        find(&mut tx, name).await?;
    }
    let rows = unprepared::query(
        "select m.fleet, m.name as migration, r.side, r.key::text as key, r.error, r.attempts, \
                to_char(r.since, 'YYYY-MM-DD\"T\"HH24:MI:SS.MSOF') as since, \
                extract(epoch from clock_timestamp() - r.since)::float8 as age, \
                case when not r.dead then greatest(extract(epoch from r.next_try_at - clock_timestamp()), 0)::float8 \
                end as next_try \
         from cutover.repairs r join cutover.migrations m on m.id = r.migration_id \
         where $1::text is null or m.name = $1 or m.fleet || '/' || m.name = $1 \
         order by r.since limit $2",
    )
    .bind(only)
    .bind(i64::from(limit))
    .fetch_all(&mut *tx)
    .await?;
    Ok(rows.iter().map(RepairReport::from_row).collect::<Result<_, _>>()?)
}

/// Makes every row of a migration that waits for repair due at once, also those that have been given up. Returns how
/// many there are.
///
/// # Errors
///
/// [`AdminError`].
///
/// # Cancel safety
///
/// Safe: all or nothing.
pub async fn retry_repairs(ledger: &Ledger, migration: &str, actor: &str) -> Result<u64, AdminError> {
    let mut tx = ledger.begin().await?;
    let found = find(&mut tx, migration).await?;
    let retried = unprepared::query(
        "update cutover.repairs set attempts = 0, dead = false, next_try_at = clock_timestamp() \
         where migration_id = $1",
    )
    .bind(found.id)
    .execute(&mut *tx)
    .await?
    .rows_affected();
    record(&mut tx, &found, &format!("{retried} repairs to be tried again"), actor, "").await?;
    tx.commit().await?;
    Ok(retried)
}

/// How many rows of a migration wait for repair: those that [`retry_repairs`] would make due.
///
/// # Errors
///
/// [`AdminError`]; an unknown migration is one.
///
/// # Cancel safety
///
/// Safe: reads only.
pub async fn unrepaired(ledger: &Ledger, migration: &str) -> Result<i64, AdminError> {
    let mut tx = ledger.begin().await?;
    let found = find(&mut tx, migration).await?;
    let count = unprepared::query_scalar("select count(*) from cutover.repairs where migration_id = $1");
    Ok(count.bind(found.id).fetch_one(&mut *tx).await?)
}
