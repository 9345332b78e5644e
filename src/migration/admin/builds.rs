use crate::config::ConfigError;
use crate::ledger::{Ledger, LedgerError};
use crate::migration::coordinator::{Entry, MigrationSpec, check};
use crate::migration::phase::{Phase, Side};

/// Why a build that declares `specs` would not be admitted to `fleet` in the ledger's present state, or could not work with
/// the schema. Empty if it would be admitted and could work.
///
/// It goes by the same rules as an [`Agent`](crate::migration::Agent), and changes nothing.
///
/// # Errors
///
/// [`LedgerError::Config`] for declarations that no agent would start with, [`LedgerError::Database`].
///
/// # Cancel safety
///
/// Safe: it only reads.
pub async fn incompatible_builds(
    ledger: &Ledger,
    fleet: &str,
    specs: &[MigrationSpec],
) -> Result<Vec<String>, LedgerError> {
    Ok(examine_builds(ledger, fleet, specs).await?.problems)
}

/// What a build finds in the ledger and in its tables before it starts.
#[derive(Debug)]
pub(crate) struct BuildFindings {
    /// Why it would not be admitted or could not work.
    pub(crate) problems: Vec<String>,
    /// What deserves attention.
    pub(crate) warnings: Vec<String>,
}

/// See [`incompatible_builds`].
pub(crate) async fn examine_builds(
    ledger: &Ledger,
    fleet: &str,
    specs: &[MigrationSpec],
) -> Result<BuildFindings, LedgerError> {
    let mut problems = Vec::new();
    check(specs, &mut problems);
    ConfigError::check(problems)?;
    let mut tx = ledger.begin().await?;
    // No instance has the id 0.
    let entries = Entry::of_fleet(&mut tx, fleet, 0).await?;
    tx.commit().await?;
    let declared = |name: &str| specs.iter().find(|spec| spec.name == name);
    let mut problems: Vec<String> =
        entries.iter().filter_map(|entry| entry.refusal(declared(&entry.name))).collect();
    let mut warnings = Vec::new();
    for spec in specs {
        let entry = entries.iter().find(|entry| entry.name == spec.name);
        let phase = entry.map_or(Phase::Off, |entry| entry.phase);
        problems.extend(schema_problem(ledger, spec, entry.map(|entry| entry.id), phase).await);
        if phase == Phase::Off {
            let found = plan_problems(ledger, spec, entry.map(|entry| entry.id)).await;
            problems.extend(found.problems);
            warnings.extend(found.warnings);
        }
    }
    Ok(BuildFindings { problems, warnings })
}

/// What the schema lacks for `phase`.
async fn schema_problem(
    ledger: &Ledger,
    spec: &MigrationSpec,
    id: Option<i32>,
    phase: Phase,
) -> Option<String> {
    let plan = spec.plan.as_ref()?;
    let schema = async {
        let mut tx = ledger.begin().await?;
        plan.schema_state(id, &mut tx).await
    };
    let problem = match schema.await {
        Err(error) => format!("the schema cannot be inspected: {error}"),
        Ok(schema) if phase.writes(Side::New) && !schema.expanded => "the new side does not exist".into(),
        Ok(schema) if phase.writes(Side::Old) && schema.contracted => "the old side is gone".into(),
        Ok(_) => return None,
    };
    Some(format!("migration {:?} is in `{phase}`, and {problem}", spec.name))
}

/// What `expand` would refuse or warn of, so that it is known before the deploy.
async fn plan_problems(ledger: &Ledger, spec: &MigrationSpec, id: Option<i32>) -> BuildFindings {
    let Some(plan) = &spec.plan else { return BuildFindings { problems: Vec::new(), warnings: Vec::new() } };
    let found = async {
        let mut tx = ledger.begin().await?;
        plan.problems(id, &mut tx).await
    };
    let name = &spec.name;
    match found.await {
        Err(error) => {
            let problem =
                format!("the plan of migration {name:?} cannot be checked against the tables: {error}");
            BuildFindings { problems: vec![problem], warnings: Vec::new() }
        }
        Ok(found) => {
            let (blocking, warnings): (Vec<_>, Vec<_>) =
                found.iter().partition(|problem| problem.is_blocking);
            let refusal = |problem| format!("migration {name:?} cannot begin: {problem}");
            BuildFindings {
                problems: blocking.into_iter().map(refusal).collect(),
                warnings: warnings.iter().map(|problem| format!("migration {name:?}: {problem}")).collect(),
            }
        }
    }
}
