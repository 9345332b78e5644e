//! Guard triggers that others dropped, or that a restore of schema `cutover` left out.

use sqlx::PgConnection;

use super::description::Description;
use crate::ledger::sides::{self, SideRows};
use crate::ledger::{guard_triggers, write_watch};
use crate::migration::catalog::PlanProblem;
use crate::migration::phase::Phase;
use crate::migration::schema::GuardTrigger;

/// What brings the triggers back, and finds what passed meanwhile.
pub(super) const FROM_EXPAND: &str = "`cutover set-phase <migration> expand`, and then forward again: the copy arms it, and a scan compares all rows";
/// The same while the new side has authority: a copy would overwrite what was written to it alone.
const FROM_SWITCH: &str = "`cutover set-phase <migration> verify`, where a scan names the rows that differ; correct these rows, and \
    then `cutover set-phase <migration> expand`, and forward again: the copy arms it";

/// The triggers of a migration that are gone.
#[derive(Debug)]
pub(super) struct Gone {
    /// Quoted names of those of the old table.
    guards: Vec<String>,
    /// The table of the check at commit, if that is gone.
    check: Option<String>,
}

impl Gone {
    /// Compares the catalog with what `expand` installs.
    pub(super) async fn find(
        plan: &Description,
        guard: &GuardTrigger,
        recorded: &SideRows,
        migration: i32,
        connection: &mut PgConnection,
    ) -> Result<Self, sqlx::Error> {
        let names = guard.names(&migration.to_string());
        let guards = guard_triggers::missing(&mut *connection, recorded.old.relation, &names).await?;
        let (table, side) = match plan.moves_columns() {
            true => (plan.old_table(), &recorded.old),
            false => (plan.new_table(), &recorded.new),
        };
        let is_gone = guard_triggers::is_check_gone(connection, side.relation, migration).await?;
        Ok(Self { guards, check: is_gone.then(|| table.to_owned()) })
    }

    pub(super) fn is_nothing(&self) -> bool {
        self.guards.is_empty() && self.check.is_none()
    }
}

/// The guard triggers that are gone.
pub(super) async fn unguarded(
    plan: &Description,
    phase: Phase,
    migration: i32,
    connection: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let mut problems = Vec::new();
    // Names of the key do not matter here.
    let Some(guard) = plan.guard(&[]) else { return Ok(problems) };
    let Some(recorded) = sides::find(&mut *connection, migration).await? else { return Ok(problems) };
    if !recorded.old.is_there {
        return Ok(problems);
    }
    let gone = Gone::find(plan, &guard, &recorded, migration, &mut *connection).await?;
    let id = migration.to_string();
    if !gone.guards.is_empty() {
        let effect = match phase {
            Phase::Retire => "so external writes of the old side are neither seen nor refused",
            _ => "so external writes were not mirrored",
        };
        let remedy = match phase {
            Phase::Switch => FROM_SWITCH.to_owned(),
            // No mapping is needed any more.
            Phase::Retire if write_watch::is_left(connection, migration).await? => {
                let statements = guard.names(&id).into_iter().zip(guard.statements_as_written(&id));
                let missing: Vec<String> = statements
                    .filter(|(name, _)| gone.guards.contains(name))
                    .map(|(_, statement)| statement)
                    .collect();
                format!("`{}`", missing.join("; "))
            }
            _ => FROM_EXPAND.to_owned(),
        };
        problems.push(gone_of(plan.old_table(), &gone.guards, effect, remedy));
    }
    // From `retire` on, one side is written.
    if let (Some(table), true) = (gone.check, phase < Phase::Retire) {
        let remedy = if phase == Phase::Switch { FROM_SWITCH } else { FROM_EXPAND };
        let effect = "so rows that changed between the two statements of a write were not compared";
        problems.push(gone_of(&table, &[guard_triggers::commit_check(&id)], effect, remedy));
    }
    Ok(problems)
}

/// The problem that these triggers of a table are gone.
pub(super) fn gone_of(table: &str, gone: &[String], effect: &str, remedy: impl Into<String>) -> PlanProblem {
    let (noun, verb) = if gone.len() == 1 { ("trigger", "is") } else { ("triggers", "are") };
    let text = format!("the guard {noun} {} of {table} {verb} gone, {effect}", gone.join(", "));
    PlanProblem::blocking(text, remedy)
}
