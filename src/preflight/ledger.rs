use std::fmt;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use tokio::time::timeout;

use super::report::{Finding, Severity};
use crate::ledger::{Ledger, LedgerError, ShareBudget, pooler_at};
use crate::migration::MigrationSpec;
use crate::migration::admin::{BuildFindings, examine_builds};
use crate::pool::ShareOptions;

/// The time limit for all queries of the ledger, including the connection.
const LEDGER_LIMIT: Duration = Duration::from_secs(15);

/// What to check in the ledger.
pub(super) struct LedgerCheck {
    pub(super) options: PgConnectOptions,
    pub(super) fleet: String,
    pub(super) specs: Vec<MigrationSpec>,
}

impl fmt::Debug for LedgerCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The options may hold a password.
        f.debug_struct("LedgerCheck").field("fleet", &self.fleet).finish_non_exhaustive()
    }
}

/// The limit of each pool, and the number of instances if it is known.
pub(super) type Budget = (u32, Option<usize>);

/// Whether the ledger can be used, and whether this build fits into the fleet. `has_unnamed`: see
/// [`Preflight::unnamed_statements`](super::Preflight::unnamed_statements).
pub(super) async fn examine(check: LedgerCheck, has_unnamed: bool, budget: Option<Budget>) -> Vec<Finding> {
    let problem = |text: String| vec![Finding::new("ledger", Severity::Problem, text)];
    match timeout(LEDGER_LIMIT, ask(check, has_unnamed, budget)).await {
        Ok(Ok(findings)) => findings,
        Ok(Err(error)) => problem(error.to_string()),
        Err(_) => problem(format!(
            "no answer within {LEDGER_LIMIT:?}; check that the database is reachable and that no transaction locks \
             schema `cutover`"
        )),
    }
}

async fn ask(
    check: LedgerCheck,
    has_unnamed: bool,
    budget: Option<Budget>,
) -> Result<Vec<Finding>, LedgerError> {
    let LedgerCheck { options, fleet, specs } = check;
    let pooler = pooler_at(&options).await?;
    let mut findings: Vec<Finding> = pooler
        .map(|pooler| match pooler.refusal(has_unnamed) {
            Some(refusal) => Finding::new("pooler", Severity::Problem, refusal),
            None => Finding::new("pooler", Severity::Warning, pooler.to_string()),
        })
        .into_iter()
        .collect();
    let ledger = match Ledger::existing(options.clone()).await {
        Ok(ledger) => ledger,
        Err(error @ (LedgerError::Missing | LedgerError::Older { .. })) => {
            Ledger::can_install(&options).await?;
            let text = match error {
                LedgerError::Missing => {
                    "schema `cutover` does not exist in this database; the first start will install it"
                }
                _ => "schema `cutover` is older than this build needs; the first start will upgrade it",
            };
            findings.push(Finding::new("ledger", Severity::Warning, text));
            return Ok(findings);
        }
        Err(error) => return Err(error),
    };
    findings.push(Finding::pass("ledger"));
    let BuildFindings { problems: incompatible, warnings } = examine_builds(&ledger, &fleet, &specs).await?;
    if incompatible.is_empty() {
        findings.push(Finding::pass("migrations"));
    }
    // Behind a pooler the pools' connections are not the server's.
    if let Some((size, instances)) = budget
        && pooler.is_none()
    {
        findings.push(connections(size, &ledger.capacity(instances, ShareOptions::default().spare).await?));
    }
    let problem = |text| Finding::new("migrations", Severity::Problem, text);
    findings.extend(incompatible.into_iter().map(problem));
    let warning = |text| Finding::new("migrations", Severity::Warning, text);
    findings.extend(warnings.into_iter().map(warning));
    Ok(findings)
}

fn connections(size: u32, budget: &ShareBudget) -> Finding {
    const AREA: &str = "connections";
    let instances = u32::try_from(budget.instances).unwrap_or(u32::MAX);
    let ShareBudget { connections, reckoning, .. } = budget;
    if *connections < instances {
        let text = format!(
            "{connections} connections are fewer than one for each of {instances} instances ({reckoning}); raise \
             max_connections or run fewer instances"
        );
        return Finding::new(AREA, Severity::Problem, text);
    }
    if *connections < instances.saturating_mul(size) {
        let text = format!(
            "{instances} pools with a limit of {size} share {connections} connections, {} each ({reckoning})",
            connections / instances.max(1)
        );
        return Finding::new(AREA, Severity::Warning, text);
    }
    Finding::pass(AREA)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_connections_are_a_problem_and_fewer_a_warning() {
        let severity = |connections| {
            let reckoning = "100 less others".into();
            let budget = ShareBudget { instances: 4, connections, reckoning, ..ShareBudget::default() };
            super::connections(10, &budget).severity
        };
        assert_eq!(
            [severity(3), severity(4), severity(39), severity(40)],
            [Severity::Problem, Severity::Warning, Severity::Warning, Severity::Pass]
        );
    }
}
