use std::time::Duration;

use tokio::time::Instant;

use super::plan::Plan;
use super::spec::MigrationSpec;
use super::state::{MigrationState, table_problems};
use crate::ledger::{Ledger, external_writes};
use crate::migration::phase::Phase;

/// How often the driver looks, except before the drop of the old side.
const EVERY: Duration = Duration::from_secs(1);

/// Guard triggers that are gone or disabled, as the driver saw them last. Moves that need them wait for them anyway. But a
/// migration can be at rest for days, and meanwhile external writes are lost.
#[derive(Debug, Default)]
pub(super) struct Guards {
    looked: Option<(Phase, Instant)>,
    problems: Vec<String>,
}

impl Guards {
    /// Looks if it is time, or `now`.
    pub(super) async fn look(
        &mut self,
        spec: &MigrationSpec,
        state: &MigrationState,
        now: bool,
        ledger: &Ledger,
    ) -> Result<(), sqlx::Error> {
        let phase = state.view.phase;
        let is_recent = self.looked.is_some_and(|(last, at)| last == phase && at.elapsed() < EVERY);
        if is_recent && !now {
            return Ok(());
        }
        self.problems = match &spec.plan {
            Some(plan) if (Phase::Backfill..=Phase::Retire).contains(&phase) => {
                found(&**plan, spec, state, ledger).await?
            }
            _ => Vec::new(),
        };
        self.looked = Some((phase, Instant::now()));
        Ok(())
    }

    /// What was found, each with its remedy.
    pub(super) fn problems(&self) -> &[String] {
        &self.problems
    }
}

async fn found(
    plan: &dyn Plan,
    spec: &MigrationSpec,
    state: &MigrationState,
    ledger: &Ledger,
) -> Result<Vec<String>, sqlx::Error> {
    let mut tx = ledger.begin().await?;
    let gone = plan.unguarded(state.view.phase, state.id, &mut tx).await?;
    let disabled = external_writes::disabled_guards(&mut tx, state.id).await?;
    tx.rollback().await?;
    let gone =
        table_problems(gone).into_iter().map(|problem| problem.text.replace("<migration>", &spec.name));
    Ok(gone.chain(disabled).collect())
}
