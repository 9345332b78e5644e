//! What lies before a migration: its steps, what each needs, and the statements that it would execute.

use serde::Serialize;
use sqlx::Row;

use super::people::{AskError, find};
use crate::fleet::{Ledger, unnamed};
use crate::migration::phase::{Phase, Task};

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
    /// What it waits for now, in words.
    pub waits_for: Option<String>,
    /// The version of the build that published the statements last; `None` where no build has a plan.
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
}

/// What the ledger knows of what steps need.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
struct Known {
    old_complete: bool,
    new_complete: bool,
    scanned: bool,
    approved: bool,
    unrepaired: bool,
}

/// The steps of this migration (`name` or `fleet/name`) from where it is to the phase `to`.
///
/// # Errors
///
/// [`AskError`]; an unknown migration is one.
///
/// # Cancel safety
///
/// Safe: reads only.
pub async fn plan(ledger: &Ledger, name: &str, to: Phase) -> Result<PlanReport, AskError> {
    let mut tx = ledger.begin().await?;
    let found = find(&mut tx, name).await?;
    let row = unnamed::query(
        "select m.fleet, m.name, m.phase, m.desired, m.waits_for, m.old_complete, m.new_complete, \
                m.dropped_at is not null as dropped, i.name as driver, p.version, p.tasks::text as tasks, \
                exists (select 1 from cutover.approvals a where a.migration_id = m.id) as approved, \
                exists (select 1 from cutover.repairs r where r.migration_id = m.id) as unrepaired, \
                coalesce((select s.differences = 0 and not exists ( \
                        select 1 from cutover.jobs b where b.migration_id = m.id \
                            and b.kind <> 'scan' and (b.finished_at is null or b.finished_at > s.started_at)) \
                    from cutover.jobs s where s.migration_id = m.id and s.kind = 'scan' \
                        and s.finished_at is not null order by s.id desc limit 1), false) as scanned \
         from cutover.migrations m \
         left join cutover.instances i on i.id = m.driver and m.driver_until > clock_timestamp() \
         left join lateral (select * from cutover.plans p where p.migration_id = m.id \
             order by p.published_at desc limit 1) p on true \
         where m.id = $1",
    )
    .bind(found.id)
    .fetch_one(&mut *tx)
    .await?;
    let known = Known {
        old_complete: row.try_get("old_complete")?,
        new_complete: row.try_get("new_complete")?,
        scanned: row.try_get("scanned")?,
        approved: row.try_get("approved")?,
        unrepaired: row.try_get("unrepaired")?,
    };
    let phase: String = row.try_get("phase")?;
    let tasks: Option<String> = row.try_get("tasks")?;
    let tasks: Vec<(String, String)> =
        tasks.and_then(|tasks| serde_json::from_str(&tasks).ok()).unwrap_or_default();
    let mut steps = Vec::new();
    let mut at = super::view::named(&phase)?;
    while let Some(next) = at.towards(to) {
        let task = task(at, next);
        let sql = task.and_then(|task| tasks.iter().find(|(name, _)| name == task.name()));
        steps.push(StepReport {
            from: at.to_string(),
            to: next.to_string(),
            needs: needs(at, next, &known),
            task: task.map(Task::name),
            sql: sql.map(|(_, sql)| sql.clone()),
        });
        at = next;
    }
    Ok(PlanReport {
        fleet: row.try_get("fleet")?,
        name: row.try_get("name")?,
        phase,
        desired: row.try_get("desired")?,
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

fn needs(from: Phase, to: Phase, known: &Known) -> Vec<Need> {
    let need = |what, holds| Need { what, holds };
    let mut needs =
        vec![need("every live instance can run it, and has nothing open at the epoch before", None)];
    match (from, to) {
        (Phase::Off, Phase::Expand) => needs.push(need("the new side is there, with its trap", None)),
        (Phase::Backfill, Phase::Verify) => {
            needs.push(need("the new side is complete", Some(known.new_complete)));
            needs.push(need("for a while no stranger has written what could not be copied", None));
        }
        (Phase::Verify, Phase::Ramp) => {
            needs.push(need("a clean scan of both sides since the last copy", Some(known.scanned)));
            needs.push(need("no row waits for repair", Some(!known.unrepaired)));
        }
        (Phase::Ramp, Phase::Switch) => {
            needs.push(need("the way back was tried on the data", Some(known.scanned)));
        }
        (Phase::Switch, Phase::Ramp) => {
            needs.push(need("the old side is complete", Some(known.old_complete)));
        }
        (Phase::Retire, Phase::Contract) => {
            needs.push(need("a person has approved the drop", Some(known.approved)));
            needs.push(need("`retire` has lasted long enough", None));
        }
        _ => {}
    }
    needs
}

/// Lets people read what this build would execute.
pub(super) async fn publish(
    ledger: &Ledger,
    migration: i32,
    version: &str,
    tasks: &[(Task, String)],
) -> Result<(), sqlx::Error> {
    let tasks: Vec<(&str, &str)> = tasks.iter().map(|(task, sql)| (task.name(), &**sql)).collect();
    let tasks = serde_json::to_string(&tasks).map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
    let mut tx = ledger.begin().await?;
    // A start of many instances at once writes it once.
    unnamed::query(
        "insert into cutover.plans as p (migration_id, version, tasks) values ($1, $2, $3::text::jsonb) \
         on conflict (migration_id, version) do update set tasks = excluded.tasks, published_at = clock_timestamp() \
         where p.tasks is distinct from excluded.tasks",
    )
    .bind(migration)
    .bind(version)
    .bind(tasks)
    .execute(&mut *tx)
    .await?;
    tx.commit().await
}
