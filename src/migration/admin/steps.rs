//! What lies before a migration: its steps, what each needs, and the statements that it would execute.

use serde::Serialize;
use sqlx::Row;

use super::commands::{AdminError, find};
use crate::ledger::{Ledger, evidence, unprepared};
use crate::migration::catalog::OldSide;
use crate::migration::coordinator::{Counted, members, parse_phase};
use crate::migration::phase::{Blocked, Member, Phase, Side, Task, waits_for_repairs, waits_for_standbys};

/// The way from where a migration is to a phase.
#[derive(Debug, Clone, Serialize)]
pub struct PlanReport {
    /// The fleet that it belongs to.
    pub fleet: String,
    /// Its name.
    pub name: String,
    /// Its phase.
    pub phase: String,
    /// What was asked for by SQL or command line.
    pub desired: Option<String>,
    /// Who asked for that.
    pub desired_by: Option<String>,
    /// Where the build takes its desired phase from: `ledger`, which is what was asked for, or for example a flag.
    pub desired_from: Option<String>,
    /// What it waits for now, in words.
    pub waits_for: Option<String>,
    /// The version of the build that published the statements last; `None` where none has published any.
    pub published_by: Option<String>,
    /// The new side holds every row's current value.
    pub new_complete: bool,
    /// A whole scan found no difference, and it is newer than the last backfill.
    pub scanned: bool,
    /// The old side was dropped.
    pub dropped: bool,
    /// The instance that drives it.
    pub driver: Option<String>,
    /// One after the other.
    pub steps: Vec<StepReport>,
}

/// A step from one phase to the next.
#[derive(Debug, Clone, Serialize)]
pub struct StepReport {
    /// From this phase,
    pub from: String,
    /// to this one.
    pub to: String,
    /// What has to hold before it.
    pub needs: Vec<Need>,
    /// The work that belongs to it, if there is some.
    pub task: Option<&'static str>,
    /// What that work executes, where a build has published it. `$1`, `$2`, … are keys.
    pub sql: Option<String>,
}

/// Something that has to hold before a step.
#[derive(Debug, Clone, Serialize)]
pub struct Need {
    /// What.
    pub what: &'static str,
    /// Whether it does now; `None` where only the instances can tell, when the time has come.
    pub holds: Option<bool>,
    /// What it waits for, in words, where it does not hold.
    pub waits_for: Option<String>,
}

impl Need {
    fn known(what: &'static str, against: impl IntoIterator<Item = Blocked>) -> Self {
        let reasons: Vec<String> = against.into_iter().map(|reason| reason.to_string()).collect();
        Self { what, holds: Some(reasons.is_empty()), waits_for: words(&reasons, "; ") }
    }

    fn later(what: &'static str) -> Self {
        Self { what, holds: None, waits_for: None }
    }
}

fn words(parts: &[String], between: &str) -> Option<String> {
    Some(parts.join(between)).filter(|text| !text.is_empty())
}

/// What the ledger knows of what steps need.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
struct Known {
    epoch: i32,
    drained: bool,
    members: Vec<Member>,
    old_complete: bool,
    new_complete: bool,
    scanned: bool,
    approved: bool,
    unrepaired: i64,
    given_up: i64,
    /// What depends on the old side, where it can be looked at.
    dependents: Option<Vec<String>>,
    /// Other statements run with the drop, and may see to that.
    drops_more: bool,
}

/// The steps of this migration (`name` or `fleet/name`) from where it is to the phase `to`.
///
/// # Errors
///
/// [`AdminError`]; an unknown migration is one.
///
/// # Cancel safety
///
/// Safe: reads only.
pub async fn plan(ledger: &Ledger, name: &str, to: Phase) -> Result<PlanReport, AdminError> {
    let mut tx = ledger.begin().await?;
    let found = find(&mut tx, name).await?;
    // The statements are those of the build that drives, then of one that lives, then the latest.
    let row = unprepared::query(concat!(
        "select m.fleet, m.name, m.phase, m.epoch, m.desired, m.desired_by, m.waits_for, m.old_complete, m.new_complete, \
                m.dropped_at is not null as dropped, i.name as driver, p.version, p.tasks::text as tasks, \
                p.old_table, p.old_column, p.desired_from, \
                b.epoch is null or b.drained_at is not null as drained, ",
        evidence!(),
        " from cutover.migrations m \
         left join cutover.epochs b on b.migration_id = m.id and b.epoch = m.epoch - 1 \
         left join cutover.instances i on i.id = m.driver and m.driver_until > clock_timestamp() \
         left join lateral (select * from cutover.plans p where p.migration_id = m.id \
             order by coalesce(p.version = i.version, false) desc, \
                 exists (select 1 from cutover.instances l where l.fleet = m.fleet and l.version = p.version \
                     and l.lease_until > clock_timestamp()) desc, p.published_at desc limit 1) p on true \
         where m.id = $1"
    ))
    .bind(found.id)
    .fetch_one(&mut *tx)
    .await?;
    let fleet: String = row.try_get("fleet")?;
    let old_side = row.try_get::<Option<String>, _>("old_table")?;
    let old_side = match old_side {
        Some(table) => Some(OldSide { table, column: row.try_get("old_column")? }),
        None => None,
    };
    let tasks: Option<String> = row.try_get("tasks")?;
    let tasks: Vec<(String, String)> =
        tasks.and_then(|tasks| serde_json::from_str(&tasks).ok()).unwrap_or_default();
    let sql = |task: Task| tasks.iter().find(|(name, _)| name == task.name()).map(|(_, sql)| sql);
    let known = Known {
        epoch: row.try_get("epoch")?,
        drained: row.try_get("drained")?,
        members: members(&mut tx, &fleet, found.id, Counted::WithLease).await?,
        old_complete: row.try_get("old_complete")?,
        new_complete: row.try_get("new_complete")?,
        scanned: row.try_get("scanned")?,
        approved: row.try_get("approved")?,
        unrepaired: row.try_get("unrepaired")?,
        given_up: row.try_get("given_up")?,
        dependents: match old_side {
            // A role of the ledger only may not be allowed to look: then it is not known.
            Some(old_side) => old_side.dependents(&mut tx).await.unwrap_or_default(),
            None => None,
        },
        drops_more: sql(Task::Contract).is_some_and(|sql| sql.contains(';')),
    };
    let phase: String = row.try_get("phase")?;
    let mut steps = Vec::new();
    let mut at = parse_phase(&phase)?;
    while let Some(next) = at.towards(to) {
        let task = task(at, next);
        steps.push(StepReport {
            from: at.to_string(),
            to: next.to_string(),
            needs: needs(at, next, &known, steps.is_empty()),
            task: task.map(Task::name),
            sql: task.and_then(sql).cloned(),
        });
        at = next;
    }
    Ok(PlanReport {
        fleet,
        name: row.try_get("name")?,
        phase,
        desired: row.try_get("desired")?,
        desired_by: row.try_get("desired_by")?,
        desired_from: row.try_get("desired_from")?,
        waits_for: row.try_get("waits_for")?,
        published_by: row.try_get("version")?,
        new_complete: known.new_complete,
        scanned: known.scanned,
        dropped: row.try_get("dropped")?,
        driver: row.try_get("driver")?,
        steps,
    })
}

/// The work that has to come to its end for this step; the drop comes right after it.
fn task(from: Phase, to: Phase) -> Option<Task> {
    match (from, to) {
        (Phase::Off, Phase::Expand) => Some(Task::Expand),
        (Phase::Backfill, Phase::Verify) => Some(Task::Backfill),
        (Phase::Verify, Phase::Ramp) => Some(Task::Scan),
        (Phase::Switch, Phase::Ramp) => Some(Task::ReverseBackfill),
        (Phase::Retire, Phase::Contract) => Some(Task::Contract),
        _ => None,
    }
}

fn needs(from: Phase, to: Phase, known: &Known, is_first: bool) -> Vec<Need> {
    let members = || known.members.iter();
    let unfit = members().filter(|member| !member.range.contains(to)).map(|member| Blocked::OutOfRange {
        instance: member.name.clone(),
        range: member.range,
        to,
    });
    let late = members()
        .filter(|member| member.acknowledged < known.epoch)
        .map(|member| Blocked::Unacknowledged { instance: member.name.clone(), at: member.acknowledged });
    let nothing_open = "nothing is open at an epoch before";
    let mut needs = vec![
        Need::known("every live instance can run it", unfit),
        match is_first {
            true => Need { holds: Some(known.drained), ..Need::known(nothing_open, late) },
            false => Need::later(nothing_open),
        },
    ];
    let unless = |holds: bool, reason: Blocked| (!holds).then_some(reason);
    if waits_for_standbys(from, to) {
        needs.push(Need::later("every standby that is read from has replayed all of it"));
    }
    if waits_for_repairs(from, to) {
        let behind = Blocked::Unrepaired { rows: known.unrepaired, given_up: known.given_up };
        needs.push(Need::known("no row waits for repair", unless(known.unrepaired == 0, behind)));
    }
    match (from, to) {
        (Phase::Off, Phase::Expand) => needs.push(Need::later("the new side is there, with its trap")),
        (Phase::Backfill, Phase::Verify) => {
            let gaps = unless(known.new_complete, Blocked::Incomplete(Side::New));
            needs.push(Need::known("the new side is complete", gaps));
            needs.push(Need::later("for a while no stranger has written what could not be copied"));
        }
        (Phase::Verify, Phase::Ramp) => {
            let scan = unless(known.scanned, Blocked::NotScanned);
            needs.push(Need::known("a clean scan of both sides since the last copy", scan));
        }
        (Phase::Ramp, Phase::Switch) => {
            let way_back = unless(known.scanned, Blocked::NoWayBack);
            needs.push(Need::known("the way back was tried on the data", way_back));
        }
        (Phase::Switch, Phase::Ramp) => {
            let gaps = unless(known.old_complete, Blocked::Incomplete(Side::Old));
            needs.push(Need::known("the old side is complete", gaps));
        }
        (Phase::Retire, Phase::Contract) => {
            let approval = unless(known.approved, Blocked::NotApproved);
            needs.push(Need::known("a person has approved the drop", approval));
            needs.push(Need::later("`retire` has lasted long enough"));
            needs.push(Need {
                what: "nothing else depends on the old side",
                holds: known.dependents.as_ref().map(Vec::is_empty).filter(|free| *free || !known.drops_more),
                waits_for: known.dependents.as_deref().and_then(|names| words(names, ", ")),
            });
        }
        _ => {}
    }
    needs
}
