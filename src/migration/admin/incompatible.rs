use crate::config::ConfigError;
use crate::ledger::{Ledger, LedgerError};
use crate::migration::coordinator::{Entry, MigrationSpec, check};
use crate::migration::phase::{Phase, Side};

/// Why a build that declares `specs` would not be admitted to `fleet` as the ledger is now, or could not work with
/// the schema as it is; nothing when it would and could.
///
/// It looks by the rules that the deploy guard of an [`Agent`](super::Agent) goes by, and changes nothing.
///
/// # Errors
///
/// [`LedgerError::Config`] for declarations that no agent would start with, [`LedgerError::Database`].
///
/// # Cancel safety
///
/// Safe: reads only.
pub async fn incompatible_builds(
    ledger: &Ledger,
    fleet: &str,
    specs: &[MigrationSpec],
) -> Result<Vec<String>, LedgerError> {
    let mut problems = Vec::new();
    check(specs, &mut problems);
    ConfigError::check(problems)?;
    let mut tx = ledger.begin().await?;
    // No instance has this number.
    let entries = Entry::of_fleet(&mut tx, fleet, 0).await?;
    tx.commit().await?;
    let declared = |name: &str| specs.iter().find(|spec| spec.name == name);
    let mut incompatible_builds: Vec<String> =
        entries.iter().filter_map(|entry| entry.refusal(declared(&entry.name))).collect();
    for spec in specs {
        let phase = entries.iter().find(|entry| entry.name == spec.name).map_or(Phase::Off, |e| e.phase);
        incompatible_builds.extend(schema(ledger, spec, phase).await);
    }
    Ok(incompatible_builds)
}

/// What the schema lacks for `phase`.
async fn schema(ledger: &Ledger, spec: &MigrationSpec, phase: Phase) -> Option<String> {
    let plan = spec.plan.as_ref()?;
    let facts = async {
        let mut tx = ledger.begin().await?;
        plan.facts(&mut tx).await
    };
    let lack = match facts.await {
        Err(error) => format!("the schema can't be looked at: {error}"),
        Ok(facts) if phase.writes(Side::New) && !facts.expanded => "the new side is not there".into(),
        Ok(facts) if phase.writes(Side::Old) && facts.contracted => "the old side is gone".into(),
        Ok(_) => return None,
    };
    Some(format!("migration {:?} is in `{phase}`, and {lack}", spec.name))
}
