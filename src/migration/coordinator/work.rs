use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::plan::PlanError;
use super::retry::{LONGEST, LONGEST_FOR_A_MOMENT, Retry};
use super::spec::MigrationSpec;
use crate::migration::phase::Task;
use crate::migration::runtime::Migration;

/// How much longer than the last failed attempt an attempt must run before the failure counts as overcome.
const OVERCOME: Duration = Duration::from_secs(5);

/// The task that a migration's phase needs, run in the background and retried when it fails.
#[derive(Debug, Default)]
pub(super) struct Work {
    running: Option<Running>,
    /// The task that ended last, if it succeeded.
    completed: Option<Task>,
    failure: Option<Failure>,
    retry: Retry,
}

#[derive(Debug)]
struct Running {
    task: Task,
    since: Instant,
    handle: JoinHandle<Result<(), PlanError>>,
}

/// Why the task cannot be completed. It stays while the next attempt runs, so that the reason does not come and go.
#[derive(Debug)]
struct Failure {
    task: Task,
    reason: String,
    /// How long the failed attempt took.
    took: Duration,
    retry_at: Instant,
}

impl Drop for Work {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Work {
    /// What the migration waits for because of the work, as text for `waits_for`.
    pub(super) fn waits_for(&self, migration: &Migration) -> Option<String> {
        let overcome = |failure: &Failure| {
            self.running.as_ref().is_some_and(|running| running.since.elapsed() > failure.took + OVERCOME)
        };
        match &self.failure {
            Some(failure) if !failure.reason.is_empty() && !overcome(failure) => Some(failure.reason.clone()),
            _ => self.running.as_ref().and_then(|_| migration.noted()),
        }
    }

    /// Starts the task that is needed, retries it when it has failed, and stops one that is no longer needed.
    pub(super) async fn keep_going(
        &mut self,
        spec: &MigrationSpec,
        migration: &Migration,
        needed: Option<Task>,
    ) {
        if let Some(running) = self.running.take_if(|running| running.handle.is_finished()) {
            let took = running.since.elapsed();
            let failed = match running.handle.await {
                Ok(Ok(())) => {
                    tracing::info!(
                        migration = spec.name,
                        task = running.task.name(),
                        ?took,
                        "task completed"
                    );
                    self.completed = Some(running.task);
                    self.failure = None;
                    if !is_ddl(running.task) {
                        self.retry.succeeded();
                    }
                    None
                }
                Ok(Err(PlanError::PhaseLeft)) => Some((String::new(), LONGEST)),
                Ok(Err(PlanError::NotNow(error))) => Some((error, LONGEST_FOR_A_MOMENT)),
                Ok(Err(error)) => Some((error.advised(), LONGEST)),
                Err(error) => Some((error.to_string(), LONGEST)),
            };
            if let Some((error, longest)) = failed {
                self.failed(spec, running.task, took, error, longest);
            }
            // `needed` may be older than this outcome. The next reconcile step knows.
            return;
        }
        let (Some(task), Some(plan)) = (needed, spec.plan.clone()) else {
            self.stop();
            return;
        };
        if self.running.as_ref().is_some_and(|running| running.task == task) {
            return;
        }
        if self.running.is_some() || self.failure.as_ref().is_some_and(|failure| failure.task != task) {
            self.stop();
        }
        if self.completed.take() == Some(task) && is_ddl(task) {
            let reason = "it succeeded, but the ledger's connection does not see its result; check that `search_path` \
                resolves the table to the same schema on the migration's pool and on the ledger's connection";
            self.failed(spec, task, Duration::ZERO, reason.to_owned(), LONGEST);
        }
        if self.failure.as_ref().is_some_and(|failure| Instant::now() < failure.retry_at) {
            return;
        }
        migration.note("");
        tracing::info!(migration = spec.name, task = task.name(), "task started");
        let migration = migration.clone();
        let handle = tokio::spawn(async move { plan.run(task, &migration).await });
        self.running = Some(Running { task, since: Instant::now(), handle });
    }

    fn failed(&mut self, spec: &MigrationSpec, task: Task, took: Duration, error: String, longest: Duration) {
        let failed = self.retry.failed(&error, longest);
        let (migration, task_name, pause) = (&spec.name, task.name(), failed.pause);
        if failed.is_new && !error.is_empty() {
            tracing::warn!(
                migration,
                task = task_name,
                error,
                ?pause,
                "task failed; retrying with growing pauses"
            );
        } else {
            tracing::debug!(migration, task = task_name, error, ?pause, "task failed again");
        }
        let reason = match error.is_empty() {
            true => String::new(),
            false => format!("task `{task_name}`, which failed and is retried: {error}"),
        };
        self.failure = Some(Failure { task, reason, took, retry_at: Instant::now() + pause });
    }

    /// Stops the task and forgets its failures.
    pub(super) fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.handle.abort();
        }
        self.failure = None;
        self.retry.succeeded();
    }
}

/// A task whose result the next reconcile step sees in the catalog. If it does not, running it again at once is of no use.
fn is_ddl(task: Task) -> bool {
    matches!(task, Task::Expand | Task::Contract)
}
