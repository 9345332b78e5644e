//! What a build must have here, beside the right phases: the sides of each migration that it uses, and the same meaning of
//! each migration's name.

use sqlx::PgConnection;

use super::entry::{Ending, Entry};
use super::plan::SidesPresent;
use super::spec::MigrationSpec;
use crate::ledger::{Ledger, endings, fleets, plans};
use crate::migration::phase::{Phase, Side};

/// Records that the migration is finished from the start if nothing was made for it and the database has only the new side,
/// as a database does that was created in the new shape.
pub(super) async fn baseline(
    ledger: &Ledger,
    fleet: &str,
    id: i32,
    spec: &MigrationSpec,
) -> Result<bool, sqlx::Error> {
    let Some(plan) = &spec.plan else { return Ok(false) };
    let mut tx = ledger.begin().await?;
    if !endings::is_untouched(&mut tx, id).await?
        || !is_new_shape(plan.sides_present(Some(id), &mut tx).await?)
    {
        tx.rollback().await?;
        return Ok(false);
    }
    fleets::lock_for_move(&mut tx, fleet).await?;
    let reason = "the database has only the new side";
    let is_recorded = endings::baseline(&mut tx, id, "cutover", reason).await?;
    tx.commit().await?;
    if is_recorded {
        tracing::info!(
            migration = spec.name,
            "the migration is finished from the start, because the database has only the new side"
        );
    }
    Ok(is_recorded)
}

/// Whether an instance with this declaration would record that the migration is finished from the start.
pub(crate) async fn would_baseline(
    tx: &mut PgConnection,
    spec: &MigrationSpec,
    entry: Option<&Entry>,
) -> Result<bool, sqlx::Error> {
    let Some(plan) = &spec.plan else { return Ok(false) };
    if let Some(entry) = entry
        && !endings::is_untouched(tx, entry.id).await?
    {
        return Ok(false);
    }
    Ok(is_new_shape(plan.sides_present(entry.map(|entry| entry.id), tx).await?))
}

fn is_new_shape(present: SidesPresent) -> bool {
    present.new && !present.old
}

/// Why this build cannot work with the schema, or with what its migration's name has meant before.
pub(crate) async fn schema_problem(
    tx: &mut PgConnection,
    spec: &MigrationSpec,
    entry: Option<&Entry>,
) -> Result<Option<String>, sqlx::Error> {
    let Some(plan) = &spec.plan else { return Ok(None) };
    let name = &spec.name;
    if let Some((entry, ending)) = entry.and_then(|entry| Some((entry, entry.ended?))) {
        let Some(declared) = plan.old_side() else { return Ok(None) };
        let known = plans::another_old_side(tx, entry.id, &declared.table, &declared.columns).await?;
        let ended = match ending {
            Ending::Finished => "finished",
            Ending::Abandoned => "abandoned",
        };
        return Ok(known.map(|known| {
            format!(
                "the name {name:?} belongs to a migration of {known}, which is {ended}, and this build declares another \
                 one by that name; to fix: give the new migration another name, or make the name free with \
                 `cutover forget {name}`"
            )
        }));
    }
    let phase = entry.map_or(Phase::Off, |entry| entry.phase);
    let present = plan.sides_present(entry.map(|entry| entry.id), tx).await?;
    let (side, missing) = match phase {
        // Without either side, the tables may be created later.
        Phase::Off => ("old", is_new_shape(present)),
        _ if phase.writes(Side::New) && !present.new => ("new", true),
        _ => ("old", phase.writes(Side::Old) && !present.old),
    };
    Ok(missing.then(|| {
        format!(
            "migration {name:?} is in `{phase}`, which uses the {side} side, and the {side} side does not exist; to fix: \
             restore it, or move to a phase that does not use it with `cutover set-phase {name} …`"
        )
    }))
}
