use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::spec::MigrationSpec;
use crate::ledger::unprepared;
use crate::migration::phase::{
    Completeness, Conditions, LaggingStandby, Member, Observed, Phase, PhaseRange, PreviousEpoch,
    SchemaState, Target,
};

/// A migration as the ledger has it: what decides about its next step, and what else a driver needs.
#[derive(Debug)]
pub(crate) struct MigrationState {
    pub(crate) id: i32,
    pub(crate) view: Observed,
    pub(crate) ramp: u8,
    /// What was asked for by SQL or command line.
    pub(crate) desired: Option<Target>,
    pub(crate) desired_by: String,
    pub(crate) waits_for: Option<String>,
    /// Who holds up the work on its rows.
    pub(crate) paused_by: Option<String>,
    /// The ledger knows that the old side is gone.
    pub(crate) dropped: bool,
    /// No transaction of the current epoch may leave a row behind any more.
    pub(crate) is_sealed: bool,
    pub(crate) facts: SchemaState,
}

/// What the ledger says of the data of a migration `m`, for who decides and for who is told beforehand: `approved`,
/// `scanned`, `unrepaired` (but for what is on its way to another store) and `given_up`.
macro_rules! known {
    () => {
        "exists (select 1 from cutover.approvals a where a.migration_id = m.id) as approved, \
         coalesce((select s.differences = 0 and not exists ( \
                 select 1 from cutover.jobs b where b.migration_id = m.id \
                     and b.kind <> 'scan' and (b.finished_at is null or b.finished_at > s.started_at)) \
                 and not exists ( \
                     select 1 from cutover.external_writes x where x.migration_id = m.id and x.last_uncopied > s.started_at) \
                 and not exists (select 1 from cutover.external_write_events w \
                     where w.migration_id = m.id and not w.copied and w.at > s.started_at) \
             from cutover.jobs s where s.migration_id = m.id and s.kind = 'scan' \
                 and s.finished_at is not null order by s.id desc limit 1), false) as scanned, \
         (select count(*) from cutover.repairs r where r.migration_id = m.id \
             and (r.error <> '' or r.since < clock_timestamp() - interval '5 s')) as unrepaired, \
         (select count(*) from cutover.repairs r where r.migration_id = m.id and r.dead) as given_up"
    };
}

/// The phase of this name in the ledger.
pub(crate) fn named(phase: &str) -> Result<Phase, sqlx::Error> {
    phase.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

fn parse_phase(row: &PgRow, column: &str) -> Result<Phase, sqlx::Error> {
    named(row.try_get(column)?)
}

impl MigrationState {
    /// Reads a migration's state. Its members are those that [`remove_expired`] has left.
    pub(crate) async fn load(
        connection: &mut PgConnection,
        fleet: &str,
        spec: &MigrationSpec,
    ) -> Result<Self, sqlx::Error> {
        let row = unprepared::query(concat!(
            "select m.id, m.epoch, m.phase, m.old_complete, m.new_complete, m.ramp_percent, m.desired, \
                    coalesce(m.desired_by, 'ledger') as desired_by, m.waits_for, m.paused_by, m.dropped_at is not null as dropped, \
                    e.sealed_at is not null as sealed, \
                    p.epoch is null or p.drained_at is not null as drained, p.closed_at is not null as closed, \
                    extract(epoch from clock_timestamp() - e.opened_at)::float8 as age, \
                    (select extract(epoch from clock_timestamp() - max(seen))::float8 from ( \
                        select last_uncopied as seen from cutover.external_writes s where s.migration_id = m.id \
                        union all select at from cutover.external_write_events w \
                            where w.migration_id = m.id and not w.copied) as uncopied) as stranger, ",
            known!(),
            " from cutover.migrations m \
             join cutover.epochs e on e.migration_id = m.id and e.epoch = m.epoch \
             left join cutover.epochs p on p.migration_id = m.id and p.epoch = m.epoch - 1 \
             where m.fleet = $1 and m.name = $2"
        ))
        .bind(fleet)
        .bind(&spec.name)
        .fetch_one(&mut *connection)
        .await?;
        let id: i32 = row.try_get("id")?;
        let phase = parse_phase(&row, "phase")?;
        let facts = match &spec.plan {
            Some(plan) => plan.schema_state(connection).await?,
            // Somebody else looks after the schema.
            None => SchemaState { expanded: true, contracted: true },
        };
        let lagging_standbys = lagging_standbys(connection, id, &spec.standbys).await?;
        let scanned = row.try_get("scanned")?;
        let age = Duration::try_from_secs_f64(row.try_get("age")?).unwrap_or_default();
        let stranger = row.try_get::<Option<f64>, _>("stranger")?;
        let stranger = stranger.map(|age| Duration::try_from_secs_f64(age).unwrap_or_default());
        let previous = match (row.try_get("drained")?, row.try_get("closed")?) {
            (true, _) => PreviousEpoch::Drained,
            (false, true) => PreviousEpoch::Closed,
            (false, false) => PreviousEpoch::Open,
        };
        Ok(Self {
            id,
            view: Observed {
                epoch: row.try_get("epoch")?,
                phase,
                previous,
                members: members(connection, fleet, id, Counted::NotRemoved).await?,
                complete: Completeness {
                    old: row.try_get("old_complete")?,
                    new: row.try_get("new_complete")?,
                },
                conditions: Conditions {
                    expanded: facts.expanded,
                    scanned,
                    // The scan maps every value back and forth.
                    reversible: scanned,
                    approved: row.try_get("approved")?,
                    quiet_period_left: stranger
                        .map_or(Duration::ZERO, |age| spec.external_write_quiet_period.saturating_sub(age)),
                    soak_left: spec.soak.saturating_sub(age),
                    unrepaired: row.try_get("unrepaired")?,
                    given_up: row.try_get("given_up")?,
                },
                lagging_standbys,
            },
            ramp: u8::try_from(row.try_get::<i16, _>("ramp_percent")?).unwrap_or(100),
            desired: row.try_get::<Option<String>, _>("desired")?.map(|text| Target::from_text(&text)),
            desired_by: row.try_get("desired_by")?,
            waits_for: row.try_get("waits_for")?,
            paused_by: row.try_get("paused_by")?,
            dropped: row.try_get("dropped")?,
            is_sealed: row.try_get("sealed")?,
            facts,
        })
    }
}

/// Removes the fleet's instances whose lease has run out on the database's clock.
///
/// Who is dead stays dead, also should that clock be set back: an instance is counted until it is removed, and one
/// that was removed has to join anew.
pub(crate) async fn remove_expired(connection: &mut PgConnection, fleet: &str) -> Result<(), sqlx::Error> {
    unprepared::query("delete from cutover.instances where fleet = $1 and lease_until < clock_timestamp()")
        .bind(fleet)
        .execute(connection)
        .await?;
    Ok(())
}

/// The standbys that lack a part of a copy, what was repaired before the epoch was sealed, or the end of the epoch before.
async fn lagging_standbys(
    connection: &mut PgConnection,
    id: i32,
    standbys: &[String],
) -> Result<Vec<LaggingStandby>, sqlx::Error> {
    if standbys.is_empty() {
        return Ok(Vec::new());
    }
    let rows = unprepared::query(
        "with needed as (select greatest( \
             (select max(finished_lsn) from cutover.jobs where migration_id = $1 and kind <> 'scan'), \
             (select greatest(max(drained_lsn), max(sealed_lsn)) from cutover.epochs where migration_id = $1)) as lsn) \
         select w.name, pg_wal_lsn_diff(needed.lsn, min(r.replay_lsn))::bigint as bytes \
         from needed cross join unnest($2::text[]) as w (name) \
         left join pg_stat_replication r on r.application_name = w.name \
         group by w.name, needed.lsn \
         having needed.lsn is not null \
            and (min(r.replay_lsn) is null or min(r.replay_lsn) < needed.lsn) order by w.name",
    )
    .bind(id)
    .bind(standbys)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| Ok(LaggingStandby { standby: row.try_get("name")?, bytes: row.try_get("bytes")? }))
        .collect()
}

/// Which instances count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counted {
    /// All that have not been removed: what decisions go by.
    NotRemoved,
    /// Those whose lease runs: what will be left once a driver has looked.
    WithLease,
}

/// The instances that have to agree.
pub(crate) async fn members(
    connection: &mut PgConnection,
    fleet: &str,
    id: i32,
    counted: Counted,
) -> Result<Vec<Member>, sqlx::Error> {
    let rows = unprepared::query(
        "select i.name, a.min_phase, a.max_phase, coalesce(a.epoch, 0) as epoch, coalesce(a.older_open, 0) as older_open, \
                extract(epoch from clock_timestamp() - a.waits_since)::bigint as waits \
         from cutover.instances i \
         left join cutover.acknowledgements a on a.instance_id = i.id and a.migration_id = $2 \
         where i.fleet = $1 and i.admitted and (not $3 or i.lease_until >= clock_timestamp()) order by i.name, i.id",
    )
    .bind(fleet)
    .bind(id)
    .bind(counted == Counted::WithLease)
    .fetch_all(connection)
    .await?;
    rows.iter().map(member).collect()
}

fn member(row: &PgRow) -> Result<Member, sqlx::Error> {
    let mut name: String = row.try_get("name")?;
    if row.try_get::<Option<String>, _>("min_phase")?.is_none() {
        // Admitted while the migration was in `off` by a build that has never heard of it. It touches only
        // the old side, as everybody does in `off`, and nothing of it can be at an older epoch.
        return Ok(Member { name, range: PhaseRange::UNAWARE, acknowledged: i32::MAX });
    }
    let (open, waits): (i32, Option<i64>) = (row.try_get("older_open")?, row.try_get("waits")?);
    if let (1.., Some(waits)) = (open, waits) {
        name = format!("{name} with {open} operations of an older epoch still open after {waits} s,");
    }
    let range = PhaseRange::new(parse_phase(row, "min_phase")?..=parse_phase(row, "max_phase")?)
        .unwrap_or(PhaseRange::UNAWARE);
    Ok(Member { name, range, acknowledged: row.try_get("epoch")? })
}
