//! Table `flag_polls`: which instance polls the flag server for its fleet, and the state that it received.
//!
//! The lease only avoids requests. Two instances that poll at once are harmless.

use std::time::Duration;

use sqlx::FromRow;

use super::connection::Ledger;
use super::{notifications, unprepared};

/// How long a row stays after the last use of its server, token and service, in days.
const KEPT_DAYS: i32 = 7;

/// What the ledger knows of a fleet's flags.
#[derive(FromRow)]
pub(crate) struct SharedState {
    /// The lease of an instance that polls has not ended.
    pub(crate) is_led: bool,
    /// That instance is this one.
    pub(crate) is_leader: bool,
    /// Increases with every change of the state.
    pub(crate) version: i64,
    /// The seconds since the flag server last answered.
    age: f64,
    /// `None` if there is none, or if the caller knows this version.
    pub(crate) state: Option<Vec<u8>>,
}

impl SharedState {
    /// The time since the flag server last answered.
    pub(crate) fn age(&self) -> Duration {
        Duration::try_from_secs_f64(self.age.max(0.0)).unwrap_or(Duration::MAX)
    }
}

/// Reads the fleet's flags. `None`: no instance has polled for this fleet yet.
pub(crate) async fn read(
    ledger: &Ledger,
    key: i64,
    instance: i64,
    known_version: i64,
) -> Result<Option<SharedState>, sqlx::Error> {
    let statement = format!(
        "select leader_until > clock_timestamp() as is_led, leader = {instance} as is_leader, version, \
                extract(epoch from clock_timestamp() - answered_at)::float8 as age, \
                case when version <> {known_version} then state end as state \
         from cutover.flag_polls where key = {key}"
    );
    Ok(ledger.ask(statement).await?.pop())
}

/// Takes over the polling if no other instance has it.
pub(crate) async fn lead(
    ledger: &Ledger,
    key: i64,
    instance: i64,
    lease: Duration,
) -> Result<bool, sqlx::Error> {
    let statement = format!(
        "insert into cutover.flag_polls as p (key, leader, leader_until) \
         values ({key}, {instance}, clock_timestamp() + make_interval(secs => {lease})) \
         on conflict (key) do update set leader = excluded.leader, leader_until = excluded.leader_until \
         where p.leader_until <= clock_timestamp() returning key",
        lease = lease.as_secs_f64()
    );
    Ok(ledger.ask::<()>(statement).await?.len() == 1)
}

/// An answer of the flag server.
pub(crate) struct Answer<'a> {
    pub(crate) state: &'a [u8],
    /// The time since the server was asked.
    pub(crate) age: Duration,
}

/// Records that the flag server answered a request of `age` ago with the state that is known, and renews the lease.
/// `false`: another instance polls now.
pub(crate) async fn renew(
    ledger: &Ledger,
    key: i64,
    instance: i64,
    lease: Duration,
    age: Duration,
) -> Result<bool, sqlx::Error> {
    let statement = format!(
        "update cutover.flag_polls set answered_at = clock_timestamp() - make_interval(secs => {age}), \
                leader_until = clock_timestamp() + make_interval(secs => {lease}) \
         where key = {key} and leader = {instance} returning key",
        age = age.as_secs_f64(),
        lease = lease.as_secs_f64()
    );
    Ok(ledger.ask::<()>(statement).await?.len() == 1)
}

/// Publishes a new state, notifies `channel` and renews the lease. `None`: another instance polls now. Otherwise the
/// state's version.
pub(crate) async fn publish(
    ledger: &Ledger,
    key: i64,
    instance: i64,
    lease: Duration,
    answer: Answer<'_>,
    channel: &str,
) -> Result<Option<i64>, sqlx::Error> {
    let mut tx = ledger.begin().await?;
    let version: Option<i64> = unprepared::query_scalar(
        "update cutover.flag_polls set state = $4, version = version + 1, \
                answered_at = clock_timestamp() - make_interval(secs => $5), \
                leader_until = clock_timestamp() + make_interval(secs => $3) \
         where key = $1 and leader = $2 returning version",
    )
    .bind(key)
    .bind(instance)
    .bind(lease.as_secs_f64())
    .bind(answer.state)
    .bind(answer.age.as_secs_f64())
    .fetch_optional(&mut *tx)
    .await?;
    if version.is_some() {
        notifications::send(&mut tx, channel).await?;
        // Rows of tokens and servers that are no longer used.
        unprepared::query(
            "delete from cutover.flag_polls where leader_until < clock_timestamp() - make_interval(days => $1)",
        )
        .bind(KEPT_DAYS)
        .execute(&mut *tx)
        .await?;
    }
    tx.commit().await?;
    Ok(version)
}

/// Ends the lease of an instance that stops, and notifies `channel`, so that another one takes over at once.
pub(crate) async fn resign(
    ledger: &Ledger,
    key: i64,
    instance: i64,
    channel: &str,
) -> Result<(), sqlx::Error> {
    let mut tx = ledger.begin().await?;
    let ended = unprepared::query(
        "update cutover.flag_polls set leader_until = clock_timestamp() where key = $1 and leader = $2",
    )
    .bind(key)
    .bind(instance)
    .execute(&mut *tx)
    .await?;
    if ended.rows_affected() > 0 {
        notifications::send(&mut tx, channel).await?;
    }
    tx.commit().await
}
