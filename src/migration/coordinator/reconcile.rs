//! One reconcile step of the driver at one migration: load the state, decide, and make at most one move, each in one
//! transaction.
//!
//! Any instance can run any step, and two at once are harmless: a move is decided again under the fleet's row lock, and the
//! new epoch's row can be inserted only once.

use std::time::Duration;

use sqlx::PgConnection;
use tokio::time::sleep;

use super::admission::{self, NewShape};
use super::guards::Guards;
use super::look;
use super::options::DriverOptions;
use super::spec::MigrationSpec;
use super::state::MigrationState;
use crate::ledger::blockers::{self, OpenTransaction};
use crate::ledger::epochs::Move;
use crate::ledger::guard_triggers::PREFIX;
use crate::ledger::{
    Ledger, endings, epochs, external_writes, fleets, guard_looks, instances, is_lock_timeout, migrations,
    notifications,
};
use crate::migration::phase::{
    Phase, PreviousEpoch, Requirement, Side, Step, Target, Task, needed_work, next_step, requirements,
};

/// How long a move waits for a lock, in milliseconds, and after how long it looks which sessions it waits for.
const LOCK_TIMEOUT: u32 = 500;
const LOOK_AFTER: Duration = Duration::from_millis(300);

/// The result of one reconcile step.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// A move was made. The next one may be possible at once.
    Moved,
    /// Nothing to do, or nothing that can be done now, on the way to this phase.
    Stays(Box<MigrationState>, Phase),
    /// Finished or abandoned. Nothing is left to do.
    Finished,
}

/// The result of a move that was decided.
enum Attempt {
    /// It was made, or the state has changed and the next step decides again.
    Done,
    /// A lock was not granted in time, because of these sessions or of external writers.
    Blocked(Vec<OpenTransaction>),
}

/// What the transaction of an attempt has changed.
enum Applied {
    /// It opened or closed this epoch.
    Epoch(i32),
    /// It sealed the current epoch. The seal stays until the standbys have what was repaired.
    Seal,
    /// The state has changed since, and the move is not decided any more.
    Nothing,
}

pub(crate) struct Reconcile<'a> {
    pub(crate) ledger: &'a Ledger,
    pub(crate) fleet: &'a str,
    pub(crate) spec: &'a MigrationSpec,
    pub(crate) options: &'a DriverOptions,
    /// What the task that the phase needs waits for, or why it failed.
    pub(crate) work_waits_for: Option<&'a str>,
    /// What the last look at the guard triggers saw.
    pub(crate) guard_seen: &'a mut Option<guard_looks::Seen>,
    pub(crate) guards: &'a mut Guards,
}

/// The desired phase, and who desires it.
struct Aim {
    target: Target,
    actor: String,
}

impl Reconcile<'_> {
    pub(crate) async fn step(&mut self) -> Result<Outcome, sqlx::Error> {
        let mut tx = self.ledger.begin().await?;
        instances::remove_expired(&mut tx, self.fleet).await?;
        let state = MigrationState::load(&mut tx, self.fleet, self.spec, false).await?;
        if let Some(is_compared) = is_compared(state.view.phase).filter(|_| !state.has_ended) {
            guard_looks::look_again(&mut tx, state.id, is_compared, self.guard_seen).await?;
        }
        tx.commit().await?;
        if state.has_ended {
            return Ok(Outcome::Finished);
        }
        let is_first = state.view.phase == Phase::Off && state.view.epoch == 1;
        if is_first && state.facts.contracted {
            match admission::baseline(self.ledger, self.fleet, state.id, self.spec).await? {
                NewShape::Yes => return Ok(Outcome::Finished),
                NewShape::Doubtful(reason) => return self.stay(state, &reason).await,
                NewShape::No => {}
            }
        }
        let target = self.aim(&state).target.phase_from(state.view.phase);
        let step = next_step(&state.view, target);
        let mut held = look::before_move(self.spec.plan.as_deref(), &state, &step, target).await?;
        self.guards.look(self.spec, &state, matches!(step, Step::Move(_)), self.ledger).await?;
        if step == Step::Move(Phase::Contract) {
            held.extend(self.guards.problems().iter().cloned());
        }
        if matches!(step, Step::Move(_)) && !held.is_empty() {
            return self.stay(state, &held.join("; ")).await;
        }
        match step {
            Step::Close | Step::Move(_) => match self.attempt(step.clone(), &state).await? {
                Attempt::Done => Ok(Outcome::Moved),
                Attempt::Blocked(sessions) => {
                    let reasons = self.blockers(&state, &step, &sessions).await?;
                    self.stay(state, &reasons.join("; ")).await
                }
            },
            Step::Drain => match self.drain(&state).await? {
                None => Ok(Outcome::Moved),
                Some(holders) => self.stay(state, &holders.join("; ")).await,
            },
            Step::Wait(reasons) => {
                let reasons = reasons.iter().map(ToString::to_string).chain(held);
                let reasons: Vec<String> = reasons.collect();
                self.stay(state, &reasons.join("; ")).await
            }
            Step::Idle => self.rest(state).await,
        }
    }

    fn aim(&self, state: &MigrationState) -> Aim {
        match self.spec.desired.target() {
            Some(target) => Aim { target, actor: self.spec.desired.actor().to_owned() },
            None => {
                let none = || Target::Hold("a desired phase to be set".into());
                let target = state.desired.clone().unwrap_or_else(none);
                Aim { target, actor: state.desired_by.clone() }
            }
        }
    }

    /// Closes the previous epoch or opens the next one.
    async fn attempt(&mut self, decided: Step, seen: &MigrationState) -> Result<Attempt, sqlx::Error> {
        let mut tx = self.ledger.begin().await?;
        let pid = blockers::limit_lock_wait(&mut tx, LOCK_TIMEOUT).await?;
        let mut sessions = Vec::new();
        let outcome = {
            let attempt = self.attempt_in(&mut tx, decided.clone(), seen);
            tokio::pin!(attempt);
            tokio::select! {
                biased;
                outcome = &mut attempt => outcome,
                () = sleep(LOOK_AFTER) => {
                    sessions = blockers::of(&self.ledger.pool(), pid).await.unwrap_or_default();
                    attempt.await
                }
            }
        };
        match outcome {
            Ok(Applied::Epoch(epoch)) => {
                tx.commit().await?;
                let migration = &self.spec.name;
                match decided {
                    Step::Move(to) => tracing::info!(migration, epoch, phase = %to, "opened an epoch"),
                    _ => tracing::info!(migration, epoch, "closed an epoch"),
                }
                Ok(Attempt::Done)
            }
            Ok(Applied::Seal) => {
                tx.commit().await?;
                Ok(Attempt::Done)
            }
            Ok(Applied::Nothing) => {
                tx.rollback().await?;
                // What its look at the catalog found has to be recorded.
                *self.guard_seen = None;
                Ok(Attempt::Done)
            }
            Err(Refusal::ExternalWriters) => Ok(Attempt::Blocked(Vec::new())),
            Err(Refusal::Database(error)) if is_lock_timeout(&error) => Ok(Attempt::Blocked(sessions)),
            Err(Refusal::Database(error)) => Err(error),
        }
    }

    /// What blocks a move, as text. Terminates transactions that a close waits for and that have been open for too long.
    async fn blockers(
        &self,
        state: &MigrationState,
        step: &Step,
        sessions: &[OpenTransaction],
    ) -> Result<Vec<String>, sqlx::Error> {
        let mut reasons = Vec::new();
        if waits_for_external_writers(state.view.phase, step) {
            let mut tx = self.ledger.begin().await?;
            reasons = external_writes::open(&mut tx, state.id).await?;
            reasons.extend(external_writes::disabled_guards(&mut tx, state.id).await?);
            tx.commit().await?;
        }
        if *step == Step::Close {
            reasons = self.terminate_holders(state.id, state.view.epoch - 1).await?;
        }
        if reasons.is_empty() {
            reasons = sessions.iter().map(|session| session.named("that blocks the move")).collect();
        }
        if reasons.is_empty() {
            reasons.push("a lock in schema `cutover`".to_owned());
        }
        Ok(reasons)
    }

    /// The statements of [`Reconcile::attempt`].
    ///
    /// A writer under REPEATABLE READ locks its epoch's row, which a close waits for. A live instance has acknowledged the
    /// next epoch and has no such writer, but one that was paused in the middle may.
    async fn attempt_in(
        &self,
        tx: &mut PgConnection,
        decided: Step,
        seen: &MigrationState,
    ) -> Result<Applied, Refusal> {
        fleets::lock_for_move(tx, self.fleet).await?;
        instances::remove_expired(tx, self.fleet).await?;
        if waits_for_external_writers(seen.view.phase, &decided)
            && (!external_writes::disabled_guards(tx, seen.id).await?.is_empty()
                || !external_writes::have_ended(tx, seen.id).await?)
        {
            return Err(Refusal::ExternalWriters);
        }
        if let Some(is_compared) = is_compared(seen.view.phase) {
            guard_looks::look(tx, seen.id, is_compared).await?;
        }
        if decided == Step::Move(Phase::Ramp) {
            epochs::seal(tx, self.fleet, &self.spec.name, !self.spec.standbys.is_empty()).await?;
        }
        migrations::lock_desired(tx, seen.id).await?;
        let state = MigrationState::load(tx, self.fleet, self.spec, true).await?;
        let aim = self.aim(&state);
        let step = next_step(&state.view, aim.target.phase_from(state.view.phase));
        if step != decided {
            let is_sealed = decided == Step::Move(Phase::Ramp) && !state.view.lagging_standbys.is_empty();
            return Ok(if is_sealed { Applied::Seal } else { Applied::Nothing });
        }
        match step {
            Step::Close => {
                let closed = state.view.epoch - 1;
                epochs::close(tx, state.id, closed).await?;
                Ok(Applied::Epoch(closed))
            }
            Step::Move(to) => Ok(Applied::Epoch(self.open_epoch(tx, &state, to, &aim).await?)),
            _ => Ok(Applied::Nothing),
        }
    }

    async fn open_epoch(
        &self,
        tx: &mut PgConnection,
        state: &MigrationState,
        to: Phase,
        aim: &Aim,
    ) -> Result<i32, sqlx::Error> {
        let complete = state.view.complete.on_entering(to);
        let (reason, ramp_percent) = match &aim.target {
            Target::Desired(desired) => (format!("towards {desired}"), desired.ramp.get()),
            Target::SwitchedOff => ("switched off: back to reading the old side".to_owned(), 100),
            Target::Hold(reason) => (reason.clone(), 100),
        };
        let step = Move {
            migration: state.id,
            fleet: self.fleet,
            name: &self.spec.name,
            epoch: state.view.epoch + 1,
            from: state.view.phase.name(),
            to: to.name(),
            old_complete: complete.old,
            new_complete: complete.new,
            ramp_percent,
            actor: &aim.actor,
            reason: &reason,
        };
        epochs::open(tx, &step).await?;
        Ok(step.epoch)
    }

    /// Waits until no transaction of the closed epoch is left. Returns those that are.
    async fn drain(&self, state: &MigrationState) -> Result<Option<Vec<String>>, sqlx::Error> {
        let closed = state.view.epoch - 1;
        let mut tx = self.ledger.begin().await?;
        blockers::limit_lock_wait(&mut tx, LOCK_TIMEOUT).await?;
        match epochs::drain(&mut tx, state.id, closed).await {
            Ok(()) => {
                tx.commit().await?;
                Ok(None)
            }
            Err(error) if is_lock_timeout(&error) => {
                tx.rollback().await?;
                Ok(Some(self.terminate_holders(state.id, closed).await?))
            }
            Err(error) => Err(error),
        }
    }

    /// Names the transactions of an epoch before the current one, and terminates those that have been open for too long.
    async fn terminate_holders(&self, migration: i32, epoch: i32) -> Result<Vec<String>, sqlx::Error> {
        let limit = i64::try_from(self.options.transaction_limit.as_secs()).unwrap_or(i64::MAX);
        let mut tx = self.ledger.begin().await?;
        let holders = epochs::terminate_holders(&mut tx, migration, epoch, limit).await?;
        tx.commit().await?;
        for holder in holders.iter().filter(|holder| holder.terminated) {
            let OpenTransaction { pid, application, age, .. } = &holder.transaction;
            let migration = &self.spec.name;
            tracing::warn!(
                migration,
                epoch,
                pid,
                application,
                age,
                "terminated a transaction of a closed epoch"
            );
        }
        let of = format!("of closed epoch {epoch}");
        Ok(holders.iter().map(|holder| holder.transaction.named(&of)).collect())
    }

    /// The desired phase is reached. Only the percentage of `ramp` may still differ.
    async fn rest(&self, state: MigrationState) -> Result<Outcome, sqlx::Error> {
        if state.is_sealed {
            self.unseal(&state).await?;
        }
        match self.aim(&state).target {
            Target::Desired(desired)
                if state.view.phase == Phase::Ramp && desired.ramp.get() != state.ramp =>
            {
                let mut tx = self.ledger.begin().await?;
                let percent = desired.ramp.get();
                migrations::set_ramp_percent(&mut tx, state.id, state.view.epoch, percent).await?;
                notifications::send(&mut tx, self.fleet).await?;
                tx.commit().await?;
                Ok(Outcome::Moved)
            }
            Target::Hold(reason) => self.stay(state, &reason).await,
            _ => self.stay(state, "").await,
        }
    }

    /// Records what the migration waits for, if that has changed.
    async fn stay(&self, state: MigrationState, reason: &str) -> Result<Outcome, sqlx::Error> {
        let is_contracted = state.view.phase == Phase::Contract && state.facts.contracted;
        if is_contracted && state.view.previous == PreviousEpoch::Drained {
            let mut tx = self.ledger.begin().await?;
            endings::finish(&mut tx, state.id, "cutover", "").await?;
            tx.commit().await?;
            return Ok(Outcome::Finished);
        }
        let target = self.aim(&state).target.phase_from(state.view.phase);
        let paused = paused(&state, target).unwrap_or_default();
        // A reason that names a guard trigger has its remedy.
        let is_told = reason.contains(PREFIX);
        let unguarded = self.guards.problems().iter().filter(|_| !is_told).map(String::as_str);
        let reasons = [reason, &paused].into_iter().chain(self.work_waits_for).chain(unguarded);
        let reasons: Vec<&str> = reasons.filter(|text| !text.is_empty()).collect();
        let waits_for = Some(reasons.join("; ")).filter(|text| !text.is_empty());
        if state.waits_for != waits_for {
            let mut tx = self.ledger.begin().await?;
            migrations::set_waits_for(&mut tx, state.id, waits_for.as_deref()).await?;
            tx.commit().await?;
        }
        Ok(Outcome::Stays(Box::new(state), target))
    }

    /// `ramp` is not desired any more: rows may be left to be repaired again.
    async fn unseal(&self, state: &MigrationState) -> Result<(), sqlx::Error> {
        let mut tx = self.ledger.begin().await?;
        // As for a move, or one of another driver could come in between.
        fleets::lock_for_move(&mut tx, self.fleet).await?;
        epochs::unseal(&mut tx, state.id, state.view.epoch).await?;
        tx.commit().await
    }
}

/// Why an attempt failed.
enum Refusal {
    ExternalWriters,
    Database(sqlx::Error),
}

impl From<sqlx::Error> for Refusal {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

/// Whether a scan may have passed rows already; `None` if no rows can be written past the guard trigger.
fn is_compared(phase: Phase) -> Option<bool> {
    (phase != Phase::Off && phase.writes(Side::Old)).then_some(phase >= Phase::Verify)
}

/// Whether external transactions must end before the step.
fn waits_for_external_writers(from: Phase, step: &Step) -> bool {
    let Step::Move(to) = step else { return false };
    requirements(from, *to).any(|one| one == Requirement::NoOpenExternalTransaction)
}

/// Who paused the work that is needed now.
fn paused(state: &MigrationState, target: Phase) -> Option<String> {
    let by = state.paused_by.as_ref()?;
    let needed = needed_work(&state.view, state.facts, target)?;
    matches!(needed, Task::Backfill | Task::ReverseBackfill | Task::Scan)
        .then(|| format!("the work on its rows, which was paused by {by}; to unblock: `cutover resume`"))
}
