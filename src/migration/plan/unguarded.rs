//! Guard triggers that others dropped, or that a restore of schema `cutover` left out.

use sqlx::PgConnection;

use super::description::Description;
use crate::ledger::{guard_triggers, sides, write_watch};
use crate::migration::catalog::PlanProblem;
use crate::migration::phase::Phase;

/// What brings the triggers back, and finds what passed meanwhile.
pub(super) const FROM_EXPAND: &str = "`cutover set-phase <migration> expand`, and then forward again: the copy arms it, and a scan compares all rows";
/// The same while the new side has authority: a copy would overwrite what was written to it alone.
const FROM_SWITCH: &str = "`cutover set-phase <migration> verify`, where a scan names the rows that differ; correct these rows, and \
    then `cutover set-phase <migration> expand`, and forward again: the copy arms it";

/// The guard triggers of the old table that are gone.
pub(super) async fn unguarded(
    plan: &Description,
    phase: Phase,
    migration: i32,
    connection: &mut PgConnection,
) -> Result<Option<PlanProblem>, sqlx::Error> {
    let Some(guard) = plan.guard(&[]) else { return Ok(None) };
    let Some(recorded) = sides::find(&mut *connection, migration).await? else { return Ok(None) };
    let id = migration.to_string();
    let expected = guard.names(&id);
    let gone = guard_triggers::missing(connection, recorded.old.relation, &expected).await?;
    if !recorded.old.is_there || gone.is_empty() {
        return Ok(None);
    }
    let effect = match phase {
        Phase::Retire => "so external writes of the old side are neither seen nor refused",
        _ => "so external writes were not mirrored",
    };
    let remedy = match phase {
        Phase::Switch => FROM_SWITCH.to_owned(),
        // No mapping is needed any more.
        Phase::Retire if write_watch::is_left(connection, migration).await? => {
            let statements = expected.iter().zip(guard.statements_as_written(&id));
            let missing: Vec<String> =
                statements.filter(|(name, _)| gone.contains(name)).map(|(_, statement)| statement).collect();
            format!("`{}`", missing.join("; "))
        }
        _ => FROM_EXPAND.to_owned(),
    };
    Ok(Some(gone_of(plan.old_table(), &gone, effect, remedy)))
}

/// The problem that these triggers of a table are gone.
pub(super) fn gone_of(table: &str, gone: &[String], effect: &str, remedy: impl Into<String>) -> PlanProblem {
    let (noun, verb) = if gone.len() == 1 { ("trigger", "is") } else { ("triggers", "are") };
    let text = format!("the guard {noun} {} of {table} {verb} gone, {effect}", gone.join(", "));
    PlanProblem::blocking(text, remedy)
}
