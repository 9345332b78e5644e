use std::time::Duration;

use sqlx::PgConnection;

use super::spec::MigrationSpec;
use crate::ledger::acknowledgements::{self, MemberRow};
use crate::ledger::{migrations, standbys};
use crate::migration::catalog::PlanProblem;
use crate::migration::phase::{
    Completeness, Conditions, LaggingStandby, Member, Observed, OlderOpen, Phase, PhaseRange, PreviousEpoch,
    SchemaState, TableProblem, Target,
};

/// A migration as the ledger and the catalog have it.
#[derive(Debug)]
pub(crate) struct MigrationState {
    pub(crate) id: i32,
    /// What decides about the next step.
    pub(crate) view: Observed,
    pub(crate) ramp: u8,
    /// The phase requested through SQL or the command line.
    pub(crate) desired: Option<Target>,
    pub(crate) desired_by: String,
    pub(crate) waits_for: Option<String>,
    /// Who paused the work on its rows.
    pub(crate) paused_by: Option<String>,
    /// Finished or abandoned. Its schema is no longer read or changed.
    pub(crate) has_ended: bool,
    /// No transaction of the current epoch may leave a row to be repaired.
    pub(crate) is_sealed: bool,
    pub(crate) facts: SchemaState,
}

/// The phase of this name in the ledger.
pub(crate) fn parse_phase(phase: &str) -> Result<Phase, sqlx::Error> {
    phase.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

/// The problems as reasons to wait.
pub(super) fn table_problems(found: Vec<PlanProblem>) -> Vec<TableProblem> {
    let reason = |found: PlanProblem| TableProblem {
        text: format!("{}; to unblock: {}", found.problem, found.remedy),
        by_library: found.by_library,
    };
    found.into_iter().map(reason).collect()
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

impl MigrationState {
    /// Reads a migration's state. `is_move`: a move is made in the same transaction. The members are the instances that have not been removed.
    pub(crate) async fn load(
        connection: &mut PgConnection,
        fleet: &str,
        spec: &MigrationSpec,
        is_move: bool,
    ) -> Result<Self, sqlx::Error> {
        let row = migrations::load(connection, fleet, &spec.name).await?;
        let phase = parse_phase(&row.phase)?;
        let facts = match &spec.plan {
            // Another object may have the name of the old side by now.
            _ if row.ended_as.is_some() => SchemaState::new(true, true),
            Some(plan) => plan.schema_state(Some(row.id), connection).await?,
            // Without a plan, the library does not change schema or data.
            None => SchemaState::new(true, true),
        };
        let lagging_standbys = standbys::lagging(connection, row.id, &spec.standbys).await?;
        let lagging_standbys = lagging_standbys
            .into_iter()
            .map(|row| LaggingStandby { standby: row.name, bytes: row.bytes })
            .collect();
        let table_problems = match &spec.plan {
            Some(plan) if row.ended_as.is_none() => {
                table_problems(plan.before_step(phase, row.id, is_move, connection).await?)
            }
            _ => Vec::new(),
        };
        let unmirrored_age = row.unmirrored_age.map(seconds);
        Ok(Self {
            id: row.id,
            view: Observed {
                epoch: row.epoch,
                phase,
                previous: PreviousEpoch::from_marks(row.drained, row.closed),
                members: members(connection, fleet, row.id, Counted::NotRemoved).await?,
                complete: Completeness { old: row.old_complete, new: row.new_complete },
                conditions: Conditions {
                    expanded: facts.expanded,
                    scanned: row.scanned,
                    // The scan maps every value back and forth.
                    reversible: row.scanned,
                    enforced: facts.enforced,
                    relaxed: facts.relaxed,
                    approved: row.approved,
                    quiet_period_left: unmirrored_age
                        .map_or(Duration::ZERO, |age| spec.external_write_quiet_period.saturating_sub(age)),
                    soak_left: spec.soak.saturating_sub(seconds(row.age)),
                    unrepaired: row.unrepaired,
                    unrepaired_old: row.unrepaired_old,
                    given_up: row.given_up,
                },
                lagging_standbys,
                table_problems,
            },
            ramp: u8::try_from(row.ramp_percent).unwrap_or(100),
            desired: row.desired.map(|text| desired(&text)),
            desired_by: row.desired_by,
            waits_for: row.waits_for,
            paused_by: row.paused_by,
            has_ended: row.ended_as.is_some(),
            is_sealed: row.sealed,
            facts,
        })
    }
}

/// The desired phase that the ledger holds. Column `desired` can be updated directly, to any text.
fn desired(text: &str) -> Target {
    match Target::from_text(text) {
        Target::Hold(reason) => Target::Hold(format!("a valid desired phase: {reason}")),
        target => target,
    }
}

/// Which instances count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counted {
    /// All that have not been removed. Decisions go by these.
    NotRemoved,
    /// Those whose lease has not ended. These remain after the next reconcile step.
    WithLease,
}

/// The instances that have to agree to a move.
pub(crate) async fn members(
    connection: &mut PgConnection,
    fleet: &str,
    migration: i32,
    counted: Counted,
) -> Result<Vec<Member>, sqlx::Error> {
    let rows = acknowledgements::members(connection, fleet, migration, counted == Counted::WithLease).await?;
    rows.into_iter().map(member).collect()
}

fn member(row: MemberRow) -> Result<Member, sqlx::Error> {
    let (Some(min), Some(max)) = (&row.min_phase, &row.max_phase) else {
        // It was admitted while the migration was in `off`, with a build that does not declare it. Such a build writes and
        // reads the old side, as every build does in `off`, and has no operation at an older epoch.
        return Ok(Member {
            name: row.name,
            range: PhaseRange::UNAWARE,
            acknowledged: i32::MAX,
            older_open: None,
        });
    };
    let range = PhaseRange::new(parse_phase(min)?..=parse_phase(max)?).unwrap_or(PhaseRange::UNAWARE);
    let older_open = match (row.older_open, row.waits) {
        (count @ 1.., Some(seconds)) => Some(OlderOpen { count, seconds }),
        _ => None,
    };
    Ok(Member { name: row.name, range, acknowledged: row.epoch, older_open })
}
