//! What a build must have here, beside the right phases: the sides of each migration that it uses, and the same meaning of
//! each migration's name.

use sqlx::PgConnection;

use super::entry::{Ending, Entry};
use super::plan::SidesPresent;
use super::spec::MigrationSpec;
use crate::ledger::{Ledger, endings, fleets, plans, sides};
use crate::migration::catalog::PlanProblem;
use crate::migration::phase::{Phase, Side};

/// Whether a database was created in the new shape, so that a migration is finished from the start.
pub(super) enum NewShape {
    /// No: the old side exists, the new one does not, or something was made for the migration.
    No,
    /// Yes: it has only the new side.
    Yes,
    /// It has only the new side, but for this reason that is no proof.
    Doubtful(String),
}

impl NewShape {
    async fn find(tx: &mut PgConnection, spec: &MigrationSpec, id: Option<i32>) -> Result<Self, sqlx::Error> {
        let Some(plan) = &spec.plan else { return Ok(Self::No) };
        if let Some(id) = id
            && !endings::is_untouched(tx, id).await?
        {
            return Ok(Self::No);
        }
        if !is_new_shape(plan.sides_present(id, tx).await?) {
            return Ok(Self::No);
        }
        let Some(PlanProblem { problem, remedy, .. }) = plan.new_shape_doubt().await? else {
            return Ok(Self::Yes);
        };
        let name = &spec.name;
        Ok(Self::Doubtful(format!(
            "migration {name:?} cannot begin and is not taken to be finished: {problem}; to fix: {remedy}; or, if this \
             database was created with the new side only, run `cutover baseline {name}`"
        )))
    }
}

/// Records that the migration is finished from the start if nothing was made for it and the database was created in the new
/// shape. It is recorded if the answer is [`NewShape::Yes`].
pub(super) async fn baseline(
    ledger: &Ledger,
    fleet: &str,
    id: i32,
    spec: &MigrationSpec,
) -> Result<NewShape, sqlx::Error> {
    if spec.plan.is_none() {
        return Ok(NewShape::No);
    }
    let mut tx = ledger.begin().await?;
    match NewShape::find(&mut tx, spec, Some(id)).await? {
        NewShape::Yes => {}
        other => {
            tx.rollback().await?;
            return Ok(other);
        }
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
    Ok(if is_recorded { NewShape::Yes } else { NewShape::No })
}

/// Whether an instance with this declaration would record that the migration is finished from the start.
pub(crate) async fn would_baseline(
    tx: &mut PgConnection,
    spec: &MigrationSpec,
    entry: Option<&Entry>,
) -> Result<bool, sqlx::Error> {
    let shape = NewShape::find(tx, spec, entry.map(|entry| entry.id)).await?;
    Ok(matches!(shape, NewShape::Yes))
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
    if let Some(entry) = entry
        && let Some(reason) = sides::restored_alone(&mut *tx, entry.id).await?
    {
        return Ok(Some(reason));
    }
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
    if entry.is_none_or(|entry| entry.is_first() && entry.phase == Phase::Off)
        && let Some(old) = plan.old_side()
        && let Some(reason) = sides::forgotten(&mut *tx, &old.table).await?
    {
        return Ok(Some(reason));
    }
    let phase = entry.map_or(Phase::Off, |entry| entry.phase);
    if phase == Phase::Off
        && let NewShape::Doubtful(reason) = NewShape::find(tx, spec, entry.map(|entry| entry.id)).await?
    {
        return Ok(Some(reason));
    }
    let present = plan.sides_present(entry.map(|entry| entry.id), tx).await?;
    // The last one is a phase that does not use the side.
    let (side, missing, other) = match phase {
        // Without either side, the tables may be created later.
        Phase::Off => ("old", is_new_shape(present), None),
        _ if phase.writes(Side::New) && !present.new => ("new", true, Some(Phase::Off)),
        _ => ("old", phase.writes(Side::Old) && !present.old, Some(Phase::Retire)),
    };
    let move_on = other.map_or_else(String::new, |other| {
        format!(", or move to a phase that does not use it with `cutover set-phase {name} {other}`")
    });
    Ok(missing.then(|| {
        format!(
            "migration {name:?} is in `{phase}`, which uses the {side} side, and the {side} side does not exist; to fix: \
             restore it{move_on}"
        )
    }))
}
