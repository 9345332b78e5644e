//! The steps ahead of a migration: what each requires, whether that holds now, and the statements that it would execute.

use std::time::Duration;

use serde::Serialize;
use sqlx::PgConnection;

use super::error::{AdminError, find};
use super::reports::addressed;
use crate::ledger::outlook::{self, OutlookRow};
use crate::ledger::{Ledger, plans};
use crate::migration::catalog::{OldSide, PlanProblem};
use crate::migration::coordinator::{Counted, members, parse_phase};
use crate::migration::phase::{
    Completeness, Conditions, Member, Observed, Phase, PreviousEpoch, Requirement, Task, requirements,
};

/// The steps from the current phase of a migration to another phase.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct PlanReport {
    /// The fleet that it belongs to.
    pub fleet: String,
    /// Its name.
    pub name: String,
    /// The current phase.
    pub phase: String,
    /// The part of the keys that `ramp` reads from the new side, in percent; `None` in other phases.
    pub ramp_percent: Option<i16>,
    /// The phase requested through SQL or the command line.
    pub desired: Option<String>,
    /// Who requested it.
    pub desired_by: Option<String>,
    /// Where the build takes the desired phase from: `ledger`, or for example the name of a flag.
    pub desired_from: Option<String>,
    /// What it waits for now, as text.
    pub waits_for: Option<String>,
    /// The version of the build that published the statements; `None` if no build has published any.
    pub published_by: Option<String>,
    /// Problems and warnings that the driver found in the database, before `ramp`.
    pub problems: Vec<PlanProblem>,
    /// Seconds since it looked; `None` if it has not.
    pub problems_seconds: Option<f64>,
    /// The new side holds the current value of every row.
    pub new_complete: bool,
    /// A scan of all rows since the last backfill found no difference.
    pub scanned: bool,
    /// Every instance works in the current phase: nothing runs at an earlier epoch.
    pub settled: bool,
    /// How it ended: `finished` (the old side is gone) or `abandoned`. `None`: it has not ended.
    pub ended_as: Option<String>,
    /// The instance that drives the migration.
    pub driver: Option<String>,
    /// The steps, in order.
    pub steps: Vec<StepReport>,
}

/// A step from one phase to the next.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct StepReport {
    /// The phase before the step.
    pub from: String,
    /// The phase after it.
    pub to: String,
    /// What the step requires.
    pub needs: Vec<Need>,
    /// The task that belongs to the step, if there is one.
    pub task: Option<&'static str>,
    /// The statements of that task, if a build has published them. `$1`, `$2`, … are keys.
    pub sql: Option<String>,
}

/// Something that a step requires.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Need {
    /// What must hold.
    pub what: String,
    /// Whether it holds now; `None` if the ledger alone cannot tell.
    pub holds: Option<bool>,
    /// Why it does not hold, as text.
    pub waits_for: Option<String>,
}

/// What depends on the old side, where the ledger's role may look.
struct Dependents {
    names: Option<Vec<String>>,
    /// The contract task has further statements, which may remove the dependents.
    may_be_dropped: bool,
}

/// The steps of a migration (`name` or `fleet/name`) from its current phase to the phase `to`.
///
/// Each step has the same requirements that the driver goes by. Some of them depend on settings of the build, on the
/// standbys or on locks. The ledger alone cannot tell whether those hold; [`waits_for`](PlanReport::waits_for) has the
/// driver's view of the next step.
///
/// # Errors
///
/// [`AdminError`].
///
/// # Cancel safety
///
/// Safe: it only reads.
pub async fn plan(ledger: &Ledger, name: &str, to: Phase) -> Result<PlanReport, AdminError> {
    let mut tx = ledger.begin().await?;
    let found = find(&mut tx, name).await?;
    plan_of(&mut tx, found.id, to).await
}

/// The steps of a migration from its current phase to the phase `to`.
pub(super) async fn plan_of(
    tx: &mut PgConnection,
    migration: i32,
    to: Phase,
) -> Result<PlanReport, AdminError> {
    let row = outlook::outlook(tx, migration).await?;
    let members = members(tx, &row.fleet, migration, Counted::WithLease).await?;
    let tasks: Vec<(String, String)> =
        row.tasks.as_deref().and_then(|tasks| serde_json::from_str(tasks).ok()).unwrap_or_default();
    let sql = |task: Task| tasks.iter().find(|(name, _)| name == task.name()).map(|(_, sql)| sql);
    let dependents = Dependents {
        names: dependents(tx, &row).await,
        may_be_dropped: sql(Task::Contract).is_some_and(|sql| sql.contains(';')),
    };
    let observed = observed(&row, members)?;
    let name = format!("{}/{}", row.fleet, row.name);
    let problems = match observed.phase <= Phase::Verify {
        true => {
            row.problems.as_deref().and_then(|found| serde_json::from_str(found).ok()).unwrap_or_default()
        }
        false => Vec::new(),
    };
    let about_refusals = [Requirement::Enforced, Requirement::Relaxed].map(|one| one.to_string());
    let mut steps = Vec::new();
    let mut from = observed.phase;
    while let Some(next) = from.towards(to).filter(|_| row.ended_as.is_none()) {
        // Only changes of the schema alone enforce anything.
        let task = Task::of_step(from, next).filter(|task| *task != Task::Enforce || sql(*task).is_some());
        steps.push(StepReport {
            from: from.to_string(),
            to: next.to_string(),
            needs: needs(from, next, &observed, row.unmirrored_age.is_some(), &dependents)
                .into_iter()
                .map(|need| Need { waits_for: need.waits_for.map(|text| addressed(&text, &name)), ..need })
                .filter(|need| sql(Task::Enforce).is_some() || !about_refusals.contains(&need.what))
                .collect(),
            task: task.map(Task::name),
            sql: task.and_then(sql).map(|sql| with_number(sql, migration)),
        });
        from = next;
    }
    Ok(PlanReport {
        fleet: row.fleet,
        name: row.name,
        ramp_percent: (observed.phase == Phase::Ramp).then_some(row.ramp_percent),
        phase: row.phase,
        desired: row.desired,
        desired_by: row.desired_by,
        desired_from: row.desired_from,
        waits_for: row.waits_for.map(|text| addressed(&text, &name)),
        published_by: row.version,
        problems,
        problems_seconds: row.problems_age,
        new_complete: row.new_complete,
        scanned: row.scanned,
        settled: row.drained,
        ended_as: row.ended_as,
        driver: row.driver,
        steps,
    })
}

/// Statements as they run. A build publishes them with `:migration` in the place of the number, which the ledger gives.
fn with_number(sql: &str, migration: i32) -> String {
    let number = migration.to_string();
    let mut parts = sql.split(":migration");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        // A cast to a type of this name stays.
        text += if text.ends_with(':') { ":migration" } else { &number };
        text += part;
    }
    text
}

/// The statements of a migration for a team's own migration files, such as those of `sqlx migrate`.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct MigrationFiles {
    /// The fleet that it belongs to.
    pub fleet: String,
    /// Its name.
    pub name: String,
    /// Adds the new side. It can run at any time before `expand`. Empty if there is nothing to add.
    pub expand: String,
    /// Drops the old side. It fails unless the migration is in `contract`, except in a database without the ledger.
    pub contract: String,
}

/// The statements of a migration (`name` or `fleet/name`) for a team's own migration files, as the latest build has
/// published them. `None` if no build with a plan has.
///
/// # Errors
///
/// [`AdminError`].
///
/// # Cancel safety
///
/// Safe: it only reads.
pub async fn migration_files(ledger: &Ledger, name: &str) -> Result<Option<MigrationFiles>, AdminError> {
    let mut tx = ledger.begin().await?;
    let found = find(&mut tx, name).await?;
    let row = outlook::outlook(&mut tx, found.id).await?;
    let tasks: Vec<(String, String)> =
        row.tasks.as_deref().and_then(|tasks| serde_json::from_str(tasks).ok()).unwrap_or_default();
    let statements = |task: Task| {
        let file = plans::file_of(task.name());
        tasks.iter().find(|(name, _)| *name == file).map(|(_, sql)| sql.clone())
    };
    let (Some(expand), Some(contract)) = (statements(Task::Expand), statements(Task::Contract)) else {
        return Ok(None);
    };
    let contract = plans::contract_guard(&row.fleet, &row.name) + &contract;
    Ok(Some(MigrationFiles { fleet: row.fleet, name: row.name, expand, contract }))
}

/// `None` if the build did not publish what it drops, if that is not there, or if the role may not look.
async fn dependents(tx: &mut PgConnection, row: &OutlookRow) -> Option<Vec<String>> {
    let old_side =
        OldSide { table: row.old_table.clone()?, columns: row.old_columns.clone().unwrap_or_default() };
    old_side.dependents(tx).await.unwrap_or_default()
}

/// What the driver would see, as far as the ledger has it. What it has not is set to "holds" here; see [`is_known`].
fn observed(row: &OutlookRow, members: Vec<Member>) -> Result<Observed, sqlx::Error> {
    Ok(Observed {
        epoch: row.epoch,
        phase: parse_phase(&row.phase)?,
        previous: PreviousEpoch::from_marks(row.drained, row.closed),
        members,
        complete: Completeness { old: row.old_complete, new: row.new_complete },
        conditions: Conditions {
            expanded: true,
            scanned: row.scanned,
            reversible: row.scanned,
            enforced: true,
            relaxed: true,
            approved: row.approved,
            quiet_period_left: Duration::ZERO,
            soak_left: Duration::ZERO,
            unrepaired: row.unrepaired,
            unrepaired_old: row.unrepaired_old,
            given_up: row.given_up,
        },
        lagging_standbys: Vec::new(),
        table_problems: Vec::new(),
    })
}

/// Whether the ledger alone tells if the requirement holds for a step from `from`, now that the migration is in `current`.
fn is_known(requirement: Requirement, from: Phase, current: Phase, has_unmirrored_writes: bool) -> bool {
    match requirement {
        // A later step is about epochs that do not exist yet.
        Requirement::PreviousEpochDrained => from == current,
        // The build has the length of the quiet period.
        Requirement::NoUnmirroredExternalWrites => !has_unmirrored_writes,
        // The build knows its schema, its standbys and its soak time; open transactions are seen by their locks.
        Requirement::NewSideExists
        | Requirement::StandbysCaughtUp
        | Requirement::Soaked
        | Requirement::NoOpenExternalTransaction
        | Requirement::TablesReady
        | Requirement::Enforced
        | Requirement::Relaxed
        | Requirement::NoDependents => false,
        Requirement::PhaseSupported
        | Requirement::Complete(_)
        | Requirement::NoRepairs
        | Requirement::OldSideRepaired
        | Requirement::CleanScan
        | Requirement::Reversible
        | Requirement::Approved => true,
    }
}

fn needs(
    from: Phase,
    to: Phase,
    observed: &Observed,
    has_unmirrored_writes: bool,
    dependents: &Dependents,
) -> Vec<Need> {
    requirements(from, to)
        .map(|requirement| {
            let what = requirement.to_string();
            if requirement == Requirement::NoDependents {
                let names = dependents.names.as_ref();
                return Need {
                    what,
                    holds: names.map(Vec::is_empty).filter(|free| *free || !dependents.may_be_dropped),
                    waits_for: names.map(|names| names.join(", ")).filter(|text| !text.is_empty()),
                };
            }
            if !is_known(requirement, from, observed.phase, has_unmirrored_writes) {
                return Need { what, holds: None, waits_for: None };
            }
            let blockers: Vec<String> =
                requirement.blockers(observed, to).iter().map(ToString::to_string).collect();
            Need {
                what,
                holds: Some(blockers.is_empty()),
                waits_for: Some(blockers.join("; ")).filter(|text| !text.is_empty()),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::phase::{OlderOpen, PhaseRange, Step, next_step};

    /// A ledger in which nothing that any step requires holds, as far as the ledger can tell.
    fn row(phase: Phase, drained: bool) -> OutlookRow {
        OutlookRow {
            fleet: "shop".into(),
            name: "status".into(),
            phase: phase.to_string(),
            epoch: 7,
            ramp_percent: 100,
            desired: None,
            desired_by: None,
            waits_for: None,
            old_complete: false,
            new_complete: false,
            ended_as: None,
            driver: None,
            closed: false,
            drained,
            unmirrored_age: None,
            approved: false,
            scanned: false,
            unrepaired: 2,
            unrepaired_old: 1,
            given_up: 1,
            version: None,
            tasks: None,
            old_table: None,
            old_columns: None,
            desired_from: None,
            problems: None,
            problems_age: None,
        }
    }

    #[test]
    fn statements_get_the_number_of_the_migration() {
        let sql = "drop trigger \"zzz_:migration_row\"; select cutover.guard_:migration(x::migration)";
        assert_eq!(with_number(sql, 7), "drop trigger \"zzz_7_row\"; select cutover.guard_7(x::migration)");
    }

    #[test]
    fn plan_and_driver_give_the_same_reasons_for_every_step() {
        let nothing = Dependents { names: None, may_be_dropped: false };
        for from in Phase::ALL {
            for to in Phase::ALL.into_iter().filter(|to| from.towards(*to) == Some(*to)) {
                for drained in [true, false] {
                    let late = Member {
                        name: "a".into(),
                        range: PhaseRange::new(from..=from).unwrap_or(PhaseRange::UNAWARE),
                        acknowledged: 6,
                        older_open: Some(OlderOpen { count: 1, seconds: 3 }),
                    };
                    let observed = observed(&row(from, drained), vec![late]).expect("a phase");
                    let needs = needs(from, to, &observed, false, &nothing);
                    let planned: Vec<&str> =
                        needs.iter().filter_map(|need| need.waits_for.as_deref()).collect();
                    let Step::Wait(reasons) = next_step(&observed, to) else { panic!("{from} → {to}") };
                    let reasons: Vec<String> = reasons.iter().map(ToString::to_string).collect();
                    assert_eq!(planned, reasons, "{from} → {to}");
                    let listed: Vec<&str> = needs.iter().map(|need| need.what.as_str()).collect();
                    let required: Vec<String> =
                        requirements(from, to).map(|required| required.to_string()).collect();
                    assert_eq!(listed, required, "{from} → {to}");
                    assert!(needs.iter().all(|need| need.holds != Some(true) || need.waits_for.is_none()));
                }
            }
        }
    }

    #[test]
    fn what_only_the_build_knows_is_not_claimed_to_hold() {
        let nothing = Dependents { names: None, may_be_dropped: false };
        let observed = observed(&row(Phase::Verify, true), Vec::new()).expect("a phase");
        let holds = |has_unmirrored_writes| {
            let needs = needs(Phase::Verify, Phase::Ramp, &observed, has_unmirrored_writes, &nothing);
            let external = Requirement::NoUnmirroredExternalWrites.to_string();
            needs.iter().find(|need| need.what == external).and_then(|need| need.holds)
        };
        assert_eq!(holds(true), None);
        assert_eq!(holds(false), Some(true));
    }
}
