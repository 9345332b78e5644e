//! Who writes past the library, for people and for the driver.

use serde::Serialize;
use sqlx::FromRow;

use super::commands::{AdminError, find};
use crate::ledger::{Ledger, unprepared};

/// Somebody who writes a migrating table past the library.
#[derive(Debug, Clone, Serialize, FromRow)]
pub struct ExternalWriteReport {
    /// The fleet that the migration belongs to.
    pub fleet: String,
    /// The migration.
    pub migration: String,
    /// The connection's `application_name`.
    pub application: String,
    /// The role that logged in.
    pub role: String,
    /// Transactions of his that wrote.
    pub transactions: i64,
    /// Those of them whose writes could not be copied to the new side on the spot.
    pub uncopied: i64,
    /// When the first one was, in the database's format and time zone.
    pub first_seen: String,
    /// When the last one was.
    pub last_seen: String,
    /// Seconds since then.
    pub age_seconds: f64,
}

/// Who has written past the library, the latest first: to the table of any migration, or of the one of this name.
///
/// Writes that were refused are not among them: they took nothing back but themselves. They are in the server's log.
///
/// # Errors
///
/// [`AdminError`]; an unknown name is one.
///
/// # Cancel safety
///
/// Safe: all or nothing.
pub async fn strangers(
    ledger: &Ledger,
    only: Option<&str>,
    limit: u32,
) -> Result<Vec<ExternalWriteReport>, AdminError> {
    let mut tx = ledger.begin().await?;
    if let Some(name) = only {
        find(&mut tx, name).await?;
    }
    let reports = unprepared::query_as(
        "select m.fleet, m.name as migration, application, role, \
                sum(transactions)::bigint as transactions, sum(uncopied)::bigint as uncopied, \
                to_char(min(first_seen), 'YYYY-MM-DD\"T\"HH24:MI:SSOF') as first_seen, \
                to_char(max(last_seen), 'YYYY-MM-DD\"T\"HH24:MI:SSOF') as last_seen, \
                extract(epoch from clock_timestamp() - max(last_seen))::float8 as age_seconds \
         from (select migration_id, application, role, transactions, uncopied, first_seen, last_seen \
                   from cutover.external_writes \
               union all select migration_id, application, role, 1, (not copied)::integer, at, at \
                   from cutover.external_write_events) as seen \
         join cutover.migrations m on m.id = seen.migration_id \
         where $1::text is null or m.name = $1 or m.fleet || '/' || m.name = $1 \
         group by m.fleet, m.name, application, role order by max(last_seen) desc limit $2",
    )
    .bind(only)
    .bind(i64::from(limit))
    .fetch_all(&mut *tx)
    .await?;
    Ok(reports)
}
