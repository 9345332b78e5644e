use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::plan::Plan;
use super::state::{MigrationState, table_problems};
use crate::ledger::{Ledger, plans};
use crate::migration::catalog::PlanProblem;
use crate::migration::phase::{Phase, Step};

/// How often the driver inspects the tables for `cutover plan`.
const EVERY: Duration = Duration::from_secs(60);

/// Inspects the tables for problems of a plan, in the background, for `cutover plan`.
#[derive(Debug, Default)]
pub(super) struct Look {
    last: Option<(Phase, Instant)>,
    running: Option<JoinHandle<()>>,
}

impl Drop for Look {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.abort();
        }
    }
}

impl Look {
    /// Inspects them if it is time, or if the phase has changed. Nothing depends on the result.
    pub(super) fn keep_going(&mut self, plan: &Arc<dyn Plan>, ledger: &Ledger, migration: i32, phase: Phase) {
        let is_due = self.last.is_none_or(|(last, at)| last != phase || at.elapsed() >= EVERY);
        let is_running = self.running.as_ref().is_some_and(|running| !running.is_finished());
        if phase > Phase::Verify || !is_due || is_running {
            return;
        }
        self.last = Some((phase, Instant::now()));
        let (plan, ledger) = (Arc::clone(plan), ledger.clone());
        self.running = Some(tokio::spawn(async move {
            if let Err(error) = look(&*plan, &ledger, migration).await {
                tracing::debug!(%error, "could not look at the tables of a plan");
            }
        }));
    }
}

async fn look(plan: &dyn Plan, ledger: &Ledger, migration: i32) -> Result<(), sqlx::Error> {
    let mut tx = ledger.begin().await?;
    let found: Vec<PlanProblem> = plan.problems(Some(migration), &mut tx).await?;
    tx.rollback().await?;
    let found = serde_json::to_string(&found).map_err(|error| sqlx::Error::Encode(error.into()))?;
    let mut tx = ledger.begin().await?;
    plans::record_problems(&mut tx, migration, &found).await?;
    tx.commit().await
}

/// What keeps the service from writing after the next step forward. The trial takes no lock of the ledger, so it precedes the
/// move.
pub(super) async fn before_move(
    plan: Option<&dyn Plan>,
    state: &MigrationState,
    step: &Step,
    target: Phase,
) -> Result<Vec<String>, sqlx::Error> {
    let (phase, is_move) = (state.view.phase, matches!(step, Step::Move(_)));
    match plan {
        Some(plan) if target > phase && (is_move || matches!(step, Step::Wait(_))) => {
            let found = table_problems(plan.before_move(phase, state.id, is_move).await?);
            Ok(found.into_iter().map(|problem| problem.text).collect())
        }
        _ => Ok(Vec::new()),
    }
}
