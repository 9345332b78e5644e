//! Table `migrations`: one row per migration, with its current epoch and phase.

use sqlx::{AssertSqlSafe, FromRow, PgConnection};

use super::evidence::evidence;
use super::{Ledger, fleets, sides, unprepared};
use crate::config::redact;

/// The id of the migration. One that is new begins at epoch 1 in `off`.
pub(crate) async fn register(tx: &mut PgConnection, fleet: &str, name: &str) -> Result<i32, sqlx::Error> {
    sides::follow_restored(tx).await?;
    // Usually it exists, and then a start waits for no lock.
    if let Some(id) = id_of(tx, fleet, name).await? {
        return Ok(id);
    }
    fleets::lock_for_move(tx, fleet).await?;
    if let Some(id) = id_of(tx, fleet, name).await? {
        return Ok(id);
    }
    let id =
        unprepared::query_scalar("insert into cutover.migrations (fleet, name) values ($1, $2) returning id")
            .bind(fleet)
            .bind(name)
            .fetch_one(&mut *tx)
            .await?;
    unprepared::query(
        "insert into cutover.epochs (migration_id, epoch, phase, actor, reason) \
         values ($1, 1, 'off', 'cutover', 'first declared')",
    )
    .bind(id)
    .execute(&mut *tx)
    .await?;
    Ok(id)
}

async fn id_of(tx: &mut PgConnection, fleet: &str, name: &str) -> Result<Option<i32>, sqlx::Error> {
    unprepared::query_scalar("select id from cutover.migrations where fleet = $1 and name = $2")
        .bind(fleet)
        .bind(name)
        .fetch_optional(tx)
        .await
}

/// What a driver decides by. Durations are in seconds.
#[derive(Debug, FromRow)]
#[expect(clippy::struct_excessive_bools, reason = "each is a column of its own")]
pub(crate) struct MigrationRow {
    pub(crate) id: i32,
    pub(crate) epoch: i32,
    pub(crate) phase: String,
    pub(crate) old_complete: bool,
    pub(crate) new_complete: bool,
    pub(crate) ramp_percent: i16,
    pub(crate) desired: Option<String>,
    pub(crate) desired_by: String,
    pub(crate) waits_for: Option<String>,
    pub(crate) paused_by: Option<String>,
    /// `finished` or `abandoned`; `None`: it has not ended.
    pub(crate) ended_as: Option<String>,
    /// The current epoch is sealed.
    pub(crate) sealed: bool,
    /// The previous epoch is drained, or there is none.
    pub(crate) drained: bool,
    /// The previous epoch is closed.
    pub(crate) closed: bool,
    /// How long the current epoch has been open.
    pub(crate) age: f64,
    /// How long ago an external write was seen that the guard trigger could not mirror.
    pub(crate) unmirrored_age: Option<f64>,
    pub(crate) approved: bool,
    pub(crate) scanned: bool,
    pub(crate) unrepaired: i64,
    pub(crate) unrepaired_old: i64,
    pub(crate) given_up: i64,
}

/// Reads what a driver decides by.
pub(crate) async fn load(
    connection: &mut PgConnection,
    fleet: &str,
    name: &str,
) -> Result<MigrationRow, sqlx::Error> {
    unprepared::query_as(concat!(
        "select m.id, m.epoch, m.phase, m.old_complete, m.new_complete, m.ramp_percent, m.desired, \
                coalesce(m.desired_by, 'ledger') as desired_by, m.waits_for, m.paused_by, \
                m.ended_as, e.sealed_at is not null as sealed, \
                p.epoch is null or p.drained_at is not null as drained, p.closed_at is not null as closed, \
                extract(epoch from clock_timestamp() - e.opened_at)::float8 as age, ",
        evidence!(),
        " from cutover.migrations m \
         join cutover.epochs e on e.migration_id = m.id and e.epoch = m.epoch \
         left join cutover.epochs p on p.migration_id = m.id and p.epoch = m.epoch - 1 \
         where m.fleet = $1 and m.name = $2"
    ))
    .bind(fleet)
    .bind(name)
    .fetch_optional(connection)
    .await?
    .ok_or_else(|| {
        let lost = "cutover.migrations or cutover.epochs lacks rows of this migration; restore schema cutover as it was last";
        sqlx::Error::Protocol(lost.to_owned())
    })
}

/// What an instance follows.
#[derive(Debug, FromRow)]
pub(crate) struct FollowedRow {
    pub(crate) id: i32,
    pub(crate) fleet: String,
    pub(crate) name: String,
    pub(crate) epoch: i32,
    pub(crate) phase: String,
    pub(crate) ramp_percent: i16,
    /// `finished` or `abandoned`; `None`: it has not ended.
    pub(crate) ended_as: Option<String>,
    /// The phase of the previous epoch while that is still in use.
    pub(crate) previous_phase: Option<String>,
    /// The epoch that the instance has acknowledged, if it takes part.
    pub(crate) acknowledged: Option<i32>,
}

fn followed(instance: i64, condition: &str) -> String {
    format!(
        "select m.id, m.fleet, m.name, m.epoch, m.phase, m.ramp_percent, m.ended_as, \
                p.phase as previous_phase, a.epoch as acknowledged \
         from cutover.migrations m \
         left join cutover.epochs p \
           on p.migration_id = m.id and p.epoch = m.epoch - 1 and p.drained_at is null \
         left join cutover.acknowledgements a on a.migration_id = m.id and a.instance_id = {instance} \
         where {condition}"
    )
}

/// All migrations of the fleet, as the instance follows them.
pub(crate) async fn of_fleet(
    connection: &mut PgConnection,
    fleet: &str,
    instance: i64,
) -> Result<Vec<FollowedRow>, sqlx::Error> {
    unprepared::query_as(AssertSqlSafe(followed(instance, "m.fleet = $1")))
        .bind(fleet)
        .fetch_all(connection)
        .await
}

/// The migrations with these ids, as the instance follows them, in one message.
pub(crate) async fn with_ids(
    ledger: &Ledger,
    ids: &[i32],
    instance: i64,
) -> Result<Vec<FollowedRow>, sqlx::Error> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    let query = followed(instance, &format!("m.id in ({})", ids.join(", ")));
    ledger.ask(query).await
}

/// The kind of the unfinished job at the migration's current epoch.
pub(crate) async fn open_job(ledger: &Ledger, migration: i32) -> Result<Option<String>, sqlx::Error> {
    let statement = format!(
        "select j.kind from cutover.jobs j \
         join cutover.migrations m on m.id = j.migration_id and m.epoch = j.epoch \
         where m.id = {migration} and j.finished_at is null"
    );
    let kinds: Vec<(String,)> = ledger.ask(statement).await?;
    Ok(kinds.into_iter().next().map(|(kind,)| kind))
}

/// Sets the percentage of `ramp`, if the migration is still at `epoch`.
pub(crate) async fn set_ramp_percent(
    tx: &mut PgConnection,
    migration: i32,
    epoch: i32,
    percent: u8,
) -> Result<(), sqlx::Error> {
    unprepared::query("update cutover.migrations set ramp_percent = $3 where id = $1 and epoch = $2")
        .bind(migration)
        .bind(epoch)
        .bind(i16::from(percent))
        .execute(tx)
        .await?;
    Ok(())
}

/// Sets what the migration waits for. A text that differs in numbers only is the same reason, and keeps its
/// `waits_since`: it counts down, or counts rows.
pub(crate) async fn set_waits_for(
    tx: &mut PgConnection,
    migration: i32,
    waits_for: Option<&str>,
) -> Result<(), sqlx::Error> {
    unprepared::query(
        "update cutover.migrations set waits_for = $2, waits_since = case \
             when $2 is null then null \
             when regexp_replace(waits_for, '[0-9]+', '', 'g') = regexp_replace($2, '[0-9]+', '', 'g') then waits_since \
             else clock_timestamp() end \
         where id = $1",
    )
    .bind(migration)
    .bind(waits_for.map(redact))
    .execute(tx)
    .await?;
    Ok(())
}

/// Locks the desired phase until the transaction ends, so that no move is made towards one that a person has replaced.
pub(crate) async fn lock_desired(tx: &mut PgConnection, migration: i32) -> Result<(), sqlx::Error> {
    unprepared::query("select id from cutover.migrations where id = $1 for no key update")
        .bind(migration)
        .execute(tx)
        .await?;
    Ok(())
}

/// Locks the migration against an end until the transaction ends. `false`: it has ended.
///
/// The transaction that makes the new side calls it first, so that nothing is made for a migration that was abandoned.
pub(crate) async fn lock_unless_ended(tx: &mut PgConnection, migration: i32) -> Result<bool, sqlx::Error> {
    let found: Option<i32> = unprepared::query_scalar(
        "select id from cutover.migrations where id = $1 and ended_at is null for key share",
    )
    .bind(migration)
    .fetch_optional(tx)
    .await?;
    Ok(found.is_some())
}
