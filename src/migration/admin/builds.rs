use crate::config::ConfigError;
use crate::ledger::{Ledger, LedgerError};
use crate::migration::coordinator::{Entry, MigrationSpec, check, schema_problem};

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
    for spec in specs {
        let entry = entries.iter().find(|entry| entry.name == spec.name);
        let found = async {
            let mut tx = ledger.begin().await?;
            schema_problem(&mut tx, spec, entry).await
        };
        problems.extend(found.await.unwrap_or_else(|error| {
            Some(format!("the schema of migration {:?} cannot be inspected: {error}", spec.name))
        }));
        if entry.is_none_or(Entry::can_expand) {
            problems.extend(plan_problems(ledger, spec, entry.map(|entry| entry.id)).await);
        }
    }
    Ok(problems)
}

/// What `expand` would refuse, so that it is known before the deploy.
async fn plan_problems(ledger: &Ledger, spec: &MigrationSpec, id: Option<i32>) -> Vec<String> {
    let Some(plan) = &spec.plan else { return Vec::new() };
    let found = async {
        let mut tx = ledger.begin().await?;
        plan.problems(id, &mut tx).await
    };
    let name = &spec.name;
    match found.await {
        Err(error) => {
            vec![format!("the plan of migration {name:?} cannot be checked against the tables: {error}")]
        }
        Ok(found) => found
            .iter()
            .filter(|problem| problem.is_blocking)
            .map(|problem| format!("migration {name:?} cannot begin: {problem}"))
            .collect(),
    }
}
