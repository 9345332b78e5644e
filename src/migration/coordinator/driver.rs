use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use sqlx::Row;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::plan::PlanError;
use super::reconcile::{Outcome, Reconcile};
use super::spec::MigrationSpec;
use crate::fleet::{Fleet, Membership};
use crate::ledger::{LedgerError, external_writes};
use crate::migration::phase::{PreviousEpoch, Task, needed_work};
use crate::migration::runtime::Migration;

/// How the driver goes about its work.
#[derive(Debug, Clone)]
pub struct DriverOptions {
    /// How long a transaction of a closed epoch may stay open before its backend is terminated, where this role
    /// may do that. Default 30 s. A paused or partitioned process can hold a migration up for this long.
    pub transaction_limit: Duration,
    /// How long the driver's office lasts when it says nothing, and how long the driver waits for an answer of the
    /// ledger. Default 5 s, at least 2 s.
    pub leadership_lease: Duration,
}

impl Default for DriverOptions {
    fn default() -> Self {
        Self { transaction_limit: Duration::from_secs(30), leadership_lease: Duration::from_secs(5) }
    }
}

impl DriverOptions {
    pub(crate) fn check(&self) -> Result<(), LedgerError> {
        if self.leadership_lease < SHORTEST_TERM {
            let problem = format!("{:?} is too short: use {SHORTEST_TERM:?} or more", self.leadership_lease);
            return Err(LedgerError::Option { field: "driver.leadership_lease", problem });
        }
        Ok(())
    }
}

/// A turn may wait half a second for a lock, and has to fit in.
const SHORTEST_TERM: Duration = Duration::from_secs(2);
/// Between turns: while an acknowledgement is awaited, while the migration is on its way, and at rest.
const AWAITING: Duration = Duration::from_millis(10);
const UNDER_WAY: Duration = Duration::from_millis(50);
const AT_REST: Duration = Duration::from_millis(250);
/// After a failed piece of work or an unreachable database.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// Work that was refused needs a person, and may be a look at a whole table: it is tried again after twice as long each
/// time, up to this.
const LONGEST_AFTER_REFUSAL: Duration = Duration::from_secs(120);

/// Moves the fleet's migrations towards what is desired, as far as this instance holds their offices.
pub(crate) struct Driver {
    fleet: Fleet,
    migrations: Arc<[(MigrationSpec, Migration)]>,
    options: DriverOptions,
    jobs: HashMap<String, Job>,
    /// Why a migration's work was refused, and how often in a row for this reason.
    refusals: HashMap<String, (String, u32)>,
}

/// A piece of work under way, or the failure of the last one.
enum Job {
    Running(Task, JoinHandle<Result<(), PlanError>>),
    Failed { what: String, again: Instant },
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.abandon_all();
    }
}

impl Driver {
    pub(crate) fn new(
        fleet: Fleet,
        migrations: Arc<[(MigrationSpec, Migration)]>,
        options: DriverOptions,
    ) -> Self {
        Self { fleet, migrations, options, jobs: HashMap::new(), refusals: HashMap::new() }
    }

    pub(crate) async fn run(mut self) {
        let mut membership = self.fleet.membership();
        loop {
            let now = *membership.borrow_and_update();
            let pause = match now {
                Membership::Out => {
                    self.abandon_all();
                    if membership.changed().await.is_err() {
                        return;
                    }
                    continue;
                }
                Membership::Joined(id) => self.serve(id).await,
            };
            sleep(pause).await;
        }
    }

    /// Serves for a part of a term at every migration whose office can be had. Returns how long to stay away.
    async fn serve(&mut self, id: i64) -> Duration {
        let mut mine = Vec::new();
        for (spec, migration) in self.migrations.clone().iter() {
            match self.in_time(self.acquire_leadership(id, migration)).await {
                Ok(true) => {
                    let count = self.fleet.ledger().ask(external_writes::count(migration.id()));
                    if let Err(error) = self.in_time(count).await {
                        tracing::warn!(%error, "strangers could not be counted");
                    }
                    mine.push((spec.clone(), migration.clone()));
                }
                Ok(false) => {
                    // Whoever drives has opened the job; it is the whole fleet's.
                    let job = self.in_time(self.open_job(migration)).await.unwrap_or_default();
                    self.see_to_work(spec, migration, job).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "the driver can't reach the ledger");
                    return AFTER_FAILURE;
                }
            }
        }
        if mine.is_empty() {
            return self.options.leadership_lease / 3;
        }
        let renew = Instant::now() + self.options.leadership_lease / 3;
        while Instant::now() < renew {
            let mut pause = AT_REST;
            for (spec, migration) in &mine {
                // It runs code of the user's: a panic there must not end the driver without a word.
                let turn =
                    AssertUnwindSafe(timeout(self.options.leadership_lease, self.turn(spec, migration)));
                match turn.catch_unwind().await {
                    Ok(Ok(Ok(wish))) => pause = pause.min(wish),
                    Ok(Ok(Err(error))) => tracing::warn!(%error, migration = spec.name, "a turn failed"),
                    Ok(Err(_)) => tracing::warn!(migration = spec.name, "the ledger did not answer a turn"),
                    Err(_) => {
                        tracing::error!(migration = spec.name, "a plan or a source of its phase panicked")
                    }
                }
            }
            sleep(pause).await;
        }
        Duration::ZERO
    }

    /// A connection that doesn't answer must not keep this instance from serving again: by then another one has
    /// the office.
    async fn in_time<T>(&self, work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
        timeout(self.options.leadership_lease, work).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
    }

    /// Holding the office only spares the others the work: every step is safe with two drivers too. Each
    /// migration has an office of its own, because not every build knows every migration.
    async fn acquire_leadership(&self, id: i64, migration: &Migration) -> Result<bool, sqlx::Error> {
        let statement = format!(
            "update cutover.migrations set driver = {id}, \
                    driver_until = clock_timestamp() + make_interval(secs => {}) \
             where id = {} \
               and exists (select 1 from cutover.instances where id = {id} and admitted) \
               and (driver is null or driver = {id} or driver_until < clock_timestamp() \
                    or not exists (select 1 from cutover.instances where id = driver)) \
             returning id",
            self.options.leadership_lease.as_secs_f64(),
            migration.id()
        );
        Ok(self.fleet.ledger().ask(statement).await?.len() == 1)
    }

    /// The work on the data that is under way at the current epoch.
    async fn open_job(&self, migration: &Migration) -> Result<Option<Task>, sqlx::Error> {
        let statement = format!(
            "select j.kind from cutover.jobs j \
             join cutover.migrations m on m.id = j.migration_id and m.epoch = j.epoch \
             where m.id = {} and j.finished_at is null",
            migration.id()
        );
        let rows = self.fleet.ledger().ask(statement).await?;
        let kind = rows.first().map(|row| row.try_get::<&str, _>("kind")).transpose()?;
        Ok(match kind {
            Some("backfill") => Some(Task::Backfill),
            Some("reverse_backfill") => Some(Task::ReverseBackfill),
            Some("scan") => Some(Task::Scan),
            _ => None,
        })
    }

    /// Takes turns until nothing more can be done now; returns how long to wait for the next.
    async fn turn(&mut self, spec: &MigrationSpec, migration: &Migration) -> Result<Duration, sqlx::Error> {
        let failure = match self.jobs.get(&spec.name) {
            Some(Job::Failed { what, .. }) => Some(what.clone()),
            Some(Job::Running(..)) => migration.noted(),
            None => None,
        };
        let turn = Reconcile {
            ledger: self.fleet.ledger(),
            fleet: self.fleet.name(),
            spec,
            options: &self.options,
            failure: failure.as_deref(),
        };
        match turn.take().await? {
            Outcome::Stepped => Ok(Duration::ZERO),
            Outcome::Still(state, target) => {
                self.see_to_work(spec, migration, needed_work(&state.view, state.facts, target)).await;
                Ok(match state.view.previous {
                    PreviousEpoch::Open | PreviousEpoch::Closed => AWAITING,
                    PreviousEpoch::Drained if state.view.phase == target => AT_REST,
                    PreviousEpoch::Drained => UNDER_WAY,
                })
            }
        }
    }

    /// Starts the work that is needed, keeps it going, and drops what is needed no more.
    async fn see_to_work(&mut self, spec: &MigrationSpec, migration: &Migration, needed: Option<Task>) {
        let finished = match self.jobs.get_mut(&spec.name) {
            Some(Job::Running(task, handle)) if handle.is_finished() => Some((*task, handle.await)),
            Some(Job::Running(task, _)) if Some(*task) == needed => return,
            Some(Job::Failed { again, .. }) if needed.is_some() && Instant::now() < *again => return,
            _ => None,
        };
        self.abandon(&spec.name);
        let failure = match finished {
            Some((task, Ok(Err(error)))) => {
                let what = format!("{task:?} failed: {error}");
                let pause = self.pause_after(&spec.name, &what, &error);
                Some((what, pause))
            }
            Some((task, Err(error))) => Some((format!("{task:?} failed: {error}"), AFTER_FAILURE)),
            Some((_, Ok(Ok(())))) => {
                self.refusals.remove(&spec.name);
                None
            }
            None => None,
        };
        if let Some((what, pause)) = failure {
            tracing::warn!(migration = spec.name, what, ?pause);
            self.jobs.insert(spec.name.clone(), Job::Failed { what, again: Instant::now() + pause });
        } else if let (Some(task), Some(plan)) = (needed, spec.plan.clone()) {
            let migration = migration.clone();
            migration.note("");
            tracing::info!(migration = spec.name, ?task, "work begins");
            let handle = tokio::spawn(async move { plan.run(task, &migration).await });
            self.jobs.insert(spec.name.clone(), Job::Running(task, handle));
        }
    }

    /// How long to wait before a piece of work is tried again.
    fn pause_after(&mut self, name: &str, what: &str, error: &PlanError) -> Duration {
        if !matches!(error, PlanError::Refused(_)) {
            return AFTER_FAILURE;
        }
        let (last, times) = self.refusals.entry(name.to_owned()).or_default();
        if last != what {
            (*last, *times) = (what.to_owned(), 0);
        }
        *times += 1;
        (AFTER_FAILURE * 2_u32.saturating_pow(*times - 1)).min(LONGEST_AFTER_REFUSAL)
    }

    fn abandon(&mut self, name: &str) {
        if let Some(Job::Running(_, handle)) = self.jobs.remove(name) {
            handle.abort();
        }
    }

    fn abandon_all(&mut self) {
        for (spec, _) in self.migrations.clone().iter() {
            self.abandon(&spec.name);
        }
    }
}
