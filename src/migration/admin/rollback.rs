//! The way back to reading the old side.

use serde::Serialize;
use sqlx::PgConnection;

use super::commands::{Actor, record};
use super::error::{AdminError, find, find_and_lock};
use super::plan::{Need, PlanReport, plan_of};
use crate::ledger::Ledger;
use crate::ledger::commands::{self, NamedMigration};
use crate::ledger::reports::{self, PastCopy, WorkReport};
use crate::migration::coordinator::parse_phase;
use crate::migration::phase::{Desired, Phase, Requirement, Side, Task};

/// The way of a migration back to a phase that reads only the old side.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct RollbackReport {
    /// The fleet that it belongs to.
    pub fleet: String,
    /// Its name.
    pub name: String,
    /// The current phase.
    pub phase: String,
    /// The phase at the end of the way back.
    pub to: String,
    /// Every instance reads only the old side.
    pub reads_old: bool,
    /// The desired phase in the ledger.
    pub desired: Option<String>,
    /// Who set it.
    pub desired_by: Option<String>,
    /// Where the build takes the desired phase from, if that is not the ledger, for example the name of a flag. The
    /// desired phase has to be set there; [`rollback`] changes nothing.
    pub decided_by: Option<String>,
    /// What it waits for now, as text.
    pub waits_for: Option<String>,
    /// The instance that drives the migration. `None`: nothing moves until an instance that declares it runs.
    pub driver: Option<String>,
    /// The steps back, in order. Empty if the current phase reads only the old side.
    pub steps: Vec<RollbackStep>,
}

/// A step back.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct RollbackStep {
    /// The phase before the step.
    pub from: String,
    /// The phase after it.
    pub to: String,
    /// What changes with the step, as a sentence.
    pub effect: &'static str,
    /// What the step requires.
    pub needs: Vec<Need>,
    /// The work on rows that the step still needs.
    pub work: Option<RollbackWork>,
}

/// Work on rows that a step back still needs.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct RollbackWork {
    /// `reverse_backfill`: copies the rows from the new side to the old one.
    pub task: &'static str,
    /// How many rows it visits, as of the latest copy; `None` if that is not known.
    pub rows: Option<i64>,
    /// How many it has visited.
    pub rows_done: i64,
    /// Seconds that are left, at the rate of this work or else of the latest copy; `None` if that is not known.
    pub seconds_left: Option<f64>,
}

/// Takes a migration (`name` or `fleet/name`) back to reading only the old side, by the shortest way: to `verify` from any
/// later phase. A migration that reads only the old side stays in its phase. Both sides are still written at the end, so
/// the way forward needs no new copy.
///
/// It sets the desired phase and returns; the driver makes the steps. With `dry_run` it changes nothing. Where a flag
/// decides ([`RollbackReport::decided_by`]), it changes nothing either.
///
/// # Errors
///
/// [`AdminError::NoWayBack`] in `contract` and for a finished migration; the other kinds of [`AdminError`].
///
/// # Cancel safety
///
/// Safe: the desired phase is set, or it is not.
pub async fn rollback(
    ledger: &Ledger,
    migration: &str,
    actor: impl Into<Actor<'_>>,
    dry_run: bool,
) -> Result<RollbackReport, AdminError> {
    let actor = actor.into();
    let mut tx = ledger.begin().await?;
    let found = match dry_run {
        true => find(&mut tx, migration).await?,
        // The phase stays as it is until the desired one is set.
        false => find_and_lock(&mut tx, migration).await?,
    };
    let phase = parse_phase(&found.phase)?;
    refuse_if_gone(&found, phase)?;
    let to = phase.min(Phase::Verify);
    let mut report = way_back(&mut tx, &found, phase).await?;
    let is_set = report.desired.as_deref().and_then(|text| text.parse().ok()) == Some(Desired::from(to));
    if !dry_run && report.decided_by.is_none() && !is_set && found.ended_as.is_none() {
        let event = format!("rollback: desired phase set to {to}");
        commands::set_desired(&mut tx, found.id, to.name(), actor.name).await?;
        record(&mut tx, &found, &event, actor).await?;
        report.desired = Some(to.to_string());
        report.desired_by = Some(actor.name.to_owned());
    }
    tx.commit().await?;
    Ok(report)
}

/// The way back of a migration that is in this phase, as it is now.
pub(super) async fn way_back(
    tx: &mut PgConnection,
    found: &NamedMigration,
    phase: Phase,
) -> Result<RollbackReport, AdminError> {
    let to = phase.min(Phase::Verify);
    let plan = plan_of(tx, found.id, to).await?;
    let copy = reports::latest_copy(tx, found.id).await?;
    let work = reports::latest_work(tx, found.id).await?;
    Ok(report(plan, phase, to, copy.as_ref(), work.as_ref()))
}

fn refuse_if_gone(found: &NamedMigration, phase: Phase) -> Result<(), AdminError> {
    let state = match (found.ended_as.as_deref(), phase) {
        (Some("finished"), _) => "finished",
        (None, Phase::Contract) => "in `contract`",
        _ => return Ok(()),
    };
    let name = &found.name;
    let mut left = Vec::new();
    if found.ended_as.is_none() {
        left.push(format!("`cutover status {name}` shows whether the drop has been done"));
    }
    left.push(
        "to have the old side again, declare a new migration, with another name, from the side that is left"
            .to_owned(),
    );
    left.push("values that the mapping cannot give back come from a backup".to_owned());
    Err(AdminError::NoWayBack { name: name.clone(), state: state.to_owned(), left })
}

fn report(
    plan: PlanReport,
    phase: Phase,
    to: Phase,
    copy: Option<&PastCopy>,
    work: Option<&WorkReport>,
) -> RollbackReport {
    let old_is_complete = Requirement::Complete(Side::Old).to_string();
    let steps = plan.steps.into_iter().map(|step| {
        let is_copy = step.task == Some(Task::ReverseBackfill.name());
        let is_complete =
            step.needs.iter().any(|need| need.what == old_is_complete && need.holds == Some(true));
        RollbackStep {
            effect: effect(&step.to),
            work: (is_copy && !is_complete).then(|| reverse_backfill(copy, work)),
            from: step.from,
            to: step.to,
            needs: step.needs,
        }
    });
    RollbackReport {
        reads_old: phase <= Phase::Verify && plan.settled,
        steps: steps.collect(),
        fleet: plan.fleet,
        name: plan.name,
        phase: plan.phase,
        to: to.to_string(),
        desired: plan.desired,
        desired_by: plan.desired_by,
        decided_by: plan.desired_from.filter(|source| source != "ledger"),
        waits_for: plan.waits_for,
        driver: plan.driver,
    }
}

fn effect(to: &str) -> &'static str {
    match to {
        "switch" => "Writes go to both sides again. External writes of the old side are accepted again.",
        "ramp" => "A part of the reads can go to the old side.",
        _ => "All reads go to the old side. Both sides are written, so the way forward needs no new copy.",
    }
}

fn reverse_backfill(copy: Option<&PastCopy>, work: Option<&WorkReport>) -> RollbackWork {
    let task = Task::ReverseBackfill.name();
    match work.filter(|work| work.kind == task && !work.finished) {
        Some(work) => RollbackWork {
            task,
            rows: Some(work.rows_total),
            rows_done: work.rows_done,
            seconds_left: work.seconds_left(),
        },
        None => RollbackWork {
            task,
            rows: copy.map(|copy| copy.rows),
            rows_done: 0,
            seconds_left: copy.map(|copy| copy.seconds),
        },
    }
}
