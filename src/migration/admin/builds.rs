use crate::config::{ConfigError, describe_error};
use crate::ledger::{Ledger, LedgerError};
use crate::migration::coordinator::{Entry, MigrationSpec, check, schema_problem, would_baseline};
use crate::migration::phase::{Phase, may_join};

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
    let is_declared = |entry: &&Entry| specs.iter().any(|spec| spec.name == entry.name);
    let undeclared = entries.iter().filter(|entry| !is_declared(entry));
    let mut problems: Vec<String> = undeclared.filter_map(|entry| entry.refusal(None)).collect();
    let mut warnings = Vec::new();
    for spec in specs {
        let entry = entries.iter().find(|entry| entry.name == spec.name);
        let found = async {
            let mut tx = ledger.begin().await?;
            if would_baseline(&mut tx, spec, entry).await? {
                return Ok(None);
            }
            let range = entry.map_or_else(|| unregistered(spec), |entry| entry.refusal(Some(spec)));
            let schema = schema_problem(&mut tx, spec, entry).await?;
            Ok::<_, sqlx::Error>(Some([range, schema]))
        };
        match found.await {
            Ok(None) => continue,
            Ok(Some(found)) => problems.extend(found.into_iter().flatten()),
            Err(error) => {
                let error = describe_error(&error);
                problems.push(format!("the schema of migration {:?} cannot be inspected: {error}", spec.name))
            }
        }
        if entry.is_none_or(Entry::can_expand) {
            let found = plan_problems(ledger, spec, entry.map(|entry| entry.id)).await;
            problems.extend(found.problems);
            warnings.extend(found.warnings);
        }
    }
    Ok(BuildFindings { problems, warnings })
}

/// Why a build cannot run a migration that begins in `off` with it.
fn unregistered(spec: &MigrationSpec) -> Option<String> {
    let (name, range) = (&spec.name, spec.range);
    (!may_join(range, [Phase::Off])).then(|| {
        format!(
            "migration {name:?} is not in the ledger and would begin in `off`, and this build can run {range}; to fix: \
             first deploy a build that can run `off`, or, if this database was created with the new side only, run \
             `cutover baseline <fleet>/{name}`"
        )
    })
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
            let error = describe_error(&error);
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
