use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::{Instant, sleep, timeout};

use super::guards::Guards;
use super::look::Look;
use super::options::DriverOptions;
use super::reconcile::{Outcome, Reconcile};
use super::retry::{LONGEST, Retry};
use super::spec::MigrationSpec;
use super::work::Work;
use crate::fleet::{Fleet, Membership};
use crate::health::Signal;
use crate::ledger::{LedgerError, external_writes, guard_looks, leadership, migrations, retention};
use crate::migration::phase::{Phase, PreviousEpoch, Task, needed_work};
use crate::migration::runtime::Migration;

/// Pauses between reconcile steps: while an acknowledgement is awaited, while the migration is moving, and at rest.
const AWAITING: Duration = Duration::from_millis(10);
const MOVING: Duration = Duration::from_millis(50);
const AT_REST: Duration = Duration::from_millis(250);
/// Each step costs the server a few milliseconds, and a backfill may take days. What has taken a while already may wait for this
/// part of that time.
const PART_OF_WAIT: u32 = 10;

/// How often rows are deleted that are older than their retention period.
const RETENTION: Duration = Duration::from_secs(60 * 60);

/// Moves the fleet's migrations towards their desired phases, where this instance is the driver.
pub(crate) struct Driver {
    fleet: Fleet,
    options: DriverOptions,
    migrations: Vec<Driven>,
    /// How often in a row the ledger could not be reached.
    contact: Retry,
    signal: Signal,
    /// What the signal says, a part for each problem.
    reported: Vec<String>,
    /// When rows that are old enough are deleted next.
    retention_due: Instant,
}

/// Epoch, state of the one before, desired phase, and the task that the phase needs.
type Found = (i32, PreviousEpoch, Phase, Option<Task>);

/// One migration.
struct Driven {
    spec: MigrationSpec,
    migration: Migration,
    work: Work,
    look: Look,
    guard_seen: Option<guard_looks::Seen>,
    guards: Guards,
    /// What the last step found, and since when.
    found: Option<(Found, Instant)>,
    /// What the health page of the driver says: why a step failed, or guard triggers that are gone.
    problem: Option<String>,
    /// Failed reconcile steps, and when the next one is due.
    retry: Retry,
    due: Instant,
}

impl Driver {
    pub(crate) fn new(
        fleet: Fleet,
        migrations: &Arc<[(MigrationSpec, Migration)]>,
        options: DriverOptions,
        signal: Signal,
    ) -> Self {
        let driven = |(spec, migration): &(MigrationSpec, Migration)| Driven {
            spec: spec.clone(),
            migration: migration.clone(),
            work: Work::default(),
            look: Look::default(),
            guard_seen: None,
            guards: Guards::default(),
            found: None,
            problem: None,
            retry: Retry::default(),
            due: Instant::now(),
        };
        let migrations = migrations.iter().map(driven).collect();
        signal.ok();
        let (contact, retention_due) = (Retry::default(), Instant::now());
        Self { fleet, options, migrations, contact, signal, reported: Vec::new(), retention_due }
    }

    pub(crate) async fn run(mut self) {
        let mut membership = self.fleet.membership();
        loop {
            let now = *membership.borrow_and_update();
            let pause = match now {
                Membership::Out => {
                    for driven in &mut self.migrations {
                        driven.work.stop();
                        driven.resigned();
                    }
                    // The lease has a signal of its own.
                    self.report(None);
                    if membership.changed().await.is_err() {
                        return;
                    }
                    continue;
                }
                Membership::Joined(id) => match self.lead(id).await {
                    Ok(mine) => {
                        if self.contact.succeeded() {
                            tracing::info!("the ledger can be reached again");
                        }
                        self.report(None);
                        self.delete_old_rows().await;
                        self.drive(&mine).await
                    }
                    Err(error) => {
                        let error = self.fleet.ledger().explained(error);
                        let failed = self.contact.failed(&error, self.options.leadership_lease);
                        if failed.is_new {
                            tracing::warn!(error, "could not reach or write the ledger; retrying");
                        }
                        self.report(Some(format!("the ledger could not be reached or written: {error}")));
                        failed.pause
                    }
                },
            };
            sleep(pause).await;
        }
    }

    /// Shows on this instance's health page what keeps it from driving. It cannot always write that into the ledger.
    fn report(&mut self, contact: Option<String>) {
        let of_migration = |one: &Driven| {
            one.problem.as_ref().map(|problem| format!("migration {}: {problem}", one.spec.name))
        };
        let problems: Vec<String> =
            contact.into_iter().chain(self.migrations.iter().filter_map(of_migration)).collect();
        if problems != self.reported {
            match problems.is_empty() {
                true => self.signal.ok(),
                false => self.signal.warn(problems.join("; ")),
            }
            self.reported = problems;
        }
    }

    async fn delete_old_rows(&mut self) {
        if Instant::now() < self.retention_due {
            return;
        }
        self.retention_due = Instant::now() + RETENTION;
        match in_time(self.options.leadership_lease, retention::apply(self.fleet.ledger())).await {
            Ok(0) => {}
            Ok(rows) => tracing::debug!(rows, "deleted rows of the ledger whose retention period has ended"),
            Err(error) => {
                tracing::warn!(%error, "could not delete old rows of the ledger; trying again in an hour")
            }
        }
    }

    /// Takes or renews the leadership of every migration where that is possible. Returns which, by index.
    async fn lead(&mut self, id: i64) -> Result<Vec<usize>, LedgerError> {
        let (ledger, limit) = (self.fleet.ledger(), self.options.leadership_lease);
        let mut mine = Vec::new();
        for (index, driven) in self.migrations.iter_mut().enumerate() {
            let Driven { spec, migration, work, problem, .. } = driven;
            let has_plan = spec.plan.is_some();
            let is_driver =
                in_time(limit, leadership::acquire(ledger, id, migration.id(), has_plan, limit)).await;
            migration.work().set_driver(matches!(is_driver, Ok(true)));
            if is_driver? {
                let count = ledger.ask::<()>(external_writes::count(migration.id()));
                if let Err(error) = in_time(limit, count).await {
                    tracing::warn!(%error, migration = spec.name, "could not count external writes");
                }
                mine.push(index);
                continue;
            }
            *problem = None;
            if has_plan {
                // The driver has opened a job, and every instance works on it.
                let job = in_time(limit, migrations::open_job(ledger, migration.id())).await?;
                work.keep_going(spec, migration, job.as_deref().and_then(task_of)).await;
            } else {
                in_time(limit, leadership::report_missing_plan(ledger, id, migration.id())).await?;
            }
        }
        Ok(mine)
    }

    /// Reconciles the migrations that this instance leads until its leadership has to be renewed. Returns how long to wait
    /// before that.
    async fn drive(&mut self, mine: &[usize]) -> Duration {
        let lease = self.options.leadership_lease;
        if mine.is_empty() {
            return lease / 3;
        }
        let renew = Instant::now() + lease / 3;
        while Instant::now() < renew {
            let mut pause = AT_REST;
            for index in mine {
                let driven = &mut self.migrations[*index];
                if Instant::now() >= driven.due {
                    driven.reconcile(&self.fleet, &self.options).await;
                }
                pause = pause.min(driven.due.saturating_duration_since(Instant::now()));
            }
            self.report(None);
            sleep(pause).await;
        }
        Duration::ZERO
    }
}

impl Driven {
    fn resigned(&mut self) {
        self.migration.work().set_driver(false);
        self.problem = None;
    }

    /// Runs one reconcile step and sets when the next one is due.
    async fn reconcile(&mut self, fleet: &Fleet, options: &DriverOptions) {
        // A plan and a source of the desired phase are the user's code: a panic in them must not end the driver silently.
        let step = AssertUnwindSafe(in_time(options.leadership_lease, self.step(fleet, options)));
        let (error, longest) = match step.catch_unwind().await {
            Ok(Ok(pause)) => {
                self.retry.succeeded();
                let problems = self.guards.problems();
                self.problem = (!problems.is_empty()).then(|| problems.join("; "));
                self.due = Instant::now() + pause;
                return;
            }
            // If the server answered, a person has to correct what it refuses. Otherwise it is unreachable, and may
            // answer again at any moment.
            Ok(Err(error @ LedgerError::Database(sqlx::Error::Database(_)))) => (error.to_string(), LONGEST),
            Ok(Err(error)) => (error.to_string(), options.leadership_lease),
            Err(_) => {
                ("the plan or the source of the desired phase panicked (see the log)".to_owned(), LONGEST)
            }
        };
        let failed = self.retry.failed(&error, longest);
        self.due = Instant::now() + failed.pause;
        if failed.is_new {
            let migration = &self.spec.name;
            tracing::warn!(migration, error, "reconcile step failed; retrying with growing pauses");
        }
        let reason = format!("a reconcile step, which failed and is retried: {error}");
        self.problem = Some(format!("waits for {reason}"));
        let report = async {
            let mut tx = fleet.ledger().begin().await?;
            migrations::set_waits_for(&mut tx, self.migration.id(), Some(&reason)).await?;
            tx.commit().await
        };
        if let Err(error) = in_time(options.leadership_lease, report).await {
            tracing::debug!(%error, "could not report a failed reconcile step");
        }
    }

    /// Returns the pause before the next step.
    async fn step(&mut self, fleet: &Fleet, options: &DriverOptions) -> Result<Duration, sqlx::Error> {
        let waits_for = self.work.waits_for(&self.migration);
        let mut reconcile = Reconcile {
            ledger: fleet.ledger(),
            fleet: fleet.name(),
            spec: &self.spec,
            options,
            work_waits_for: waits_for.as_deref(),
            guard_seen: &mut self.guard_seen,
            guards: &mut self.guards,
        };
        match reconcile.step().await? {
            Outcome::Moved => Ok(Duration::ZERO),
            Outcome::Finished => {
                self.work.stop();
                Ok(AT_REST)
            }
            Outcome::Stays(state, target) => {
                let needed = needed_work(&state.view, state.facts, target);
                if let Some(plan) = &self.spec.plan {
                    self.look.keep_going(plan, fleet.ledger(), state.id, state.view.phase);
                }
                self.work.keep_going(&self.spec, &self.migration, needed).await;
                let pause = match state.view.previous {
                    PreviousEpoch::Open | PreviousEpoch::Closed => AWAITING,
                    PreviousEpoch::Drained if state.view.phase == target => AT_REST,
                    PreviousEpoch::Drained => MOVING,
                };
                let waited = self.has_found((state.view.epoch, state.view.previous, target, needed));
                Ok(pause.max((waited / PART_OF_WAIT).min(AT_REST)))
            }
        }
    }

    /// For how long the steps have found this.
    fn has_found(&mut self, found: Found) -> Duration {
        match self.found {
            Some((last, since)) if last == found => since.elapsed(),
            _ => {
                self.found = Some((found, Instant::now()));
                Duration::ZERO
            }
        }
    }
}

/// The task that a job of this kind belongs to.
fn task_of(job: &str) -> Option<Task> {
    [Task::Backfill, Task::ReverseBackfill, Task::Scan].into_iter().find(|task| task.name() == job)
}

/// A connection that does not answer must not keep this instance from renewing its leadership.
async fn in_time<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, LedgerError> {
    match timeout(limit, work).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(LedgerError::Timeout { limit }),
    }
}
