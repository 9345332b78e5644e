//! Table `history`: what happened, when, and who asked for it.

use serde::Serialize;
use sqlx::{FromRow, PgConnection};

use super::unprepared;
use crate::config::redact;

/// What is recorded about an event.
#[derive(Debug)]
pub(crate) struct NewEvent<'a> {
    pub(crate) fleet: &'a str,
    pub(crate) migration: &'a str,
    pub(crate) event: &'a str,
    pub(crate) epoch: i32,
    pub(crate) actor: &'a str,
    pub(crate) reason: &'a str,
}

/// Records an event in the caller's transaction.
pub(crate) async fn record(tx: &mut PgConnection, event: &NewEvent<'_>) -> Result<(), sqlx::Error> {
    unprepared::query(
        "insert into cutover.history (fleet, migration, event, epoch, actor, reason) \
         values ($1, $2, $3, $4, $5, $6)",
    )
    .bind(event.fleet)
    .bind(event.migration)
    .bind(event.event)
    .bind(event.epoch)
    .bind(redact(event.actor))
    .bind(redact(event.reason))
    .execute(tx)
    .await?;
    Ok(())
}

/// An event in the history of a fleet.
#[derive(Debug, Clone, Serialize, FromRow)]
#[non_exhaustive]
pub struct Event {
    /// When it happened, as ISO 8601 in the database's time zone.
    pub at: String,
    /// The fleet.
    pub fleet: String,
    /// The migration; `None` if the event concerns the whole fleet.
    pub migration: Option<String>,
    /// What happened.
    pub event: String,
    /// The epoch that the event opened, or at which it happened.
    pub epoch: Option<i32>,
    /// Who asked for it: a person, a flag, or `cutover` itself.
    pub actor: String,
    /// The reason that the actor gave.
    pub reason: String,
}

/// The latest events, newest first: those of one migration (`name` or `fleet/name`), or all.
pub(crate) async fn list(
    tx: &mut PgConnection,
    migration: Option<&str>,
    limit: u32,
) -> Result<Vec<Event>, sqlx::Error> {
    unprepared::query_as(
        "select to_char(at, 'YYYY-MM-DD\"T\"HH24:MI:SS.MSOF') as at, fleet, migration, event, epoch, actor, reason \
         from cutover.history where $1::text is null or migration = $1 or fleet || '/' || migration = $1 \
         order by id desc limit $2",
    )
    .bind(migration)
    .bind(i64::from(limit))
    .fetch_all(tx)
    .await
}
