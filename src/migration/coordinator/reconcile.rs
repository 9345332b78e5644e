//! One turn of the driver at one migration: look, decide, and do at most one step, each in one transaction.
//!
//! Any instance can do any turn, and two at once are harmless: a step is decided again under the fleet's row
//! lock, and the new epoch's row can be inserted only once.

use sqlx::{Executor, PgConnection, Row};

use super::driver::DriverOptions;
use super::spec::MigrationSpec;
use super::state::{MigrationState, remove_expired};
use crate::ledger::locks;
use crate::ledger::{Ledger, external_writes, is_lock_timeout, unprepared};
use crate::migration::phase::{Phase, Step, Target, Task, needed_work, next_step};

/// How long a turn waits for a lock before it says who holds it.
const SHORTLY: &str = "set local lock_timeout = '500ms'";

/// What a turn came to.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// A step was made; the next one may be possible at once.
    Stepped,
    /// Nothing to do, or nothing that can be done now, on the way to this phase.
    Still(Box<MigrationState>, Phase),
}

pub(crate) struct Reconcile<'a> {
    pub(crate) ledger: &'a Ledger,
    pub(crate) fleet: &'a str,
    pub(crate) spec: &'a MigrationSpec,
    pub(crate) options: &'a DriverOptions,
    /// Why the work that the phase needs failed last, or what it waits for.
    pub(crate) failure: Option<&'a str>,
}

/// Where a migration shall go, and on whose word.
struct Aim {
    target: Target,
    actor: String,
}

impl Reconcile<'_> {
    pub(crate) async fn take(&self) -> Result<Outcome, sqlx::Error> {
        let mut tx = self.ledger.begin().await?;
        remove_expired(&mut tx, self.fleet).await?;
        let state = MigrationState::load(&mut tx, self.fleet, self.spec).await?;
        let step = next_step(&state.view, self.aim(&state).target.phase_from(state.view.phase));
        tx.commit().await?;
        match step {
            Step::Close | Step::Move(_) => match self.step(step.clone(), &state).await {
                Ok(true) => Ok(Outcome::Stepped),
                Err(error) if !is_lock_timeout(&error) => Err(error),
                Ok(false) | Err(_) => {
                    let holders = self.in_the_way(&state, &step).await?;
                    self.stay(state, holders.unwrap_or_else(|| "a lock in the ledger".into())).await
                }
            },
            Step::Drain => match self.drain(&state).await? {
                None => Ok(Outcome::Stepped),
                Some(holders) => self.stay(state, holders).await,
            },
            Step::Wait(reasons) => {
                let reasons: Vec<String> = reasons.iter().map(ToString::to_string).collect();
                self.stay(state, reasons.join("; ")).await
            }
            Step::Idle => self.rest(state).await,
        }
    }

    fn aim(&self, state: &MigrationState) -> Aim {
        let nothing = || Target::Hold("no phase was asked for".into());
        match self.spec.desired.target() {
            Some(target) => Aim { target, actor: self.spec.desired.actor().to_owned() },
            None => {
                Aim { target: state.desired.clone().unwrap_or_else(nothing), actor: state.desired_by.clone() }
            }
        }
    }

    /// Closes the previous epoch or opens the next one. `false` where somebody is in the way.
    ///
    /// A writer under REPEATABLE READ holds a lock on its epoch's row, which a close has to wait for. A live
    /// instance has acknowledged and holds none, but one that was paused in the middle may.
    async fn step(&self, decided: Step, seen: &MigrationState) -> Result<bool, sqlx::Error> {
        let mut tx = self.ledger.begin().await?;
        tx.execute(SHORTLY).await?;
        hold_fleet(&mut tx, self.fleet).await?;
        remove_expired(&mut tx, self.fleet).await?;
        if waits_for_strangers(seen.view.phase, &decided)
            && !external_writes::have_ended(&mut tx, seen.id).await?
        {
            return Ok(false);
        }
        if decided == Step::Move(Phase::Ramp) {
            seal(&mut tx, self.fleet, self.spec).await?;
        }
        let state = MigrationState::load(&mut tx, self.fleet, self.spec).await?;
        let aim = self.aim(&state);
        let step = next_step(&state.view, aim.target.phase_from(state.view.phase));
        if step != decided {
            if decided == Step::Move(Phase::Ramp) && !state.view.lagging_standbys.is_empty() {
                // Sealed it stays, until the standbys have what was repaired.
                tx.commit().await?;
            }
            // The world changed since; the next turn looks again.
            return Ok(true);
        }
        match step {
            Step::Close => {
                unprepared::query(
                    "update cutover.epochs set closed_at = clock_timestamp() \
                     where migration_id = $1 and epoch = $2 and closed_at is null",
                )
                .bind(state.id)
                .bind(state.view.epoch - 1)
                .execute(&mut *tx)
                .await?;
            }
            Step::Move(to) => open_epoch(&mut tx, self.fleet, self.spec, &state, to, &aim).await?,
            _ => return Ok(true),
        }
        tx.commit().await?;
        tracing::info!(migration = %self.spec.name, epoch = state.view.epoch, ?step, "step made");
        Ok(true)
    }

    /// Waits until no transaction of the closed epoch is left; after the time limit its backends are
    /// terminated. Returns who is still there.
    async fn drain(&self, state: &MigrationState) -> Result<Option<String>, sqlx::Error> {
        let closed = state.view.epoch - 1;
        let mut tx = self.ledger.begin().await?;
        tx.execute(SHORTLY).await?;
        let granted = unprepared::query("select pg_advisory_xact_lock($1, $2)")
            .bind(locks::EPOCH + state.id)
            .bind(closed)
            .execute(&mut *tx)
            .await;
        match granted {
            Ok(_) => {
                unprepared::query(
                    "update cutover.epochs set drained_at = clock_timestamp(), drained_lsn = pg_current_wal_insert_lsn() \
                     where migration_id = $1 and epoch = $2 and drained_at is null and closed_at is not null",
                )
                .bind(state.id)
                .bind(closed)
                .execute(&mut *tx)
                .await?;
                tx.commit().await?;
                Ok(None)
            }
            Err(error) if is_lock_timeout(&error) => {
                tx.rollback().await?;
                Ok(Some(self.end_old_holders(state.id, closed).await?.unwrap_or_default()))
            }
            Err(error) => Err(error),
        }
    }

    /// Whose transactions a step waits for, in words. Those of a closed epoch are ended after a while, and so are those
    /// that a move into `ramp` waits for; see `seal`. What else is open may be as long as it likes.
    async fn in_the_way(&self, state: &MigrationState, step: &Step) -> Result<Option<String>, sqlx::Error> {
        let mut named = Vec::new();
        if waits_for_strangers(state.view.phase, step) {
            let mut tx = self.ledger.begin().await?;
            named = external_writes::open(&mut tx, state.id).await?;
            tx.commit().await?;
        }
        let epoch = match step {
            Step::Close => Some(state.view.epoch - 1),
            Step::Move(Phase::Ramp) if named.is_empty() => Some(state.view.epoch),
            _ => None,
        };
        if let Some(epoch) = epoch {
            named.extend(self.end_old_holders(state.id, epoch).await?);
        }
        Ok(Some(named.join("; ")).filter(|text| !text.is_empty()))
    }

    async fn end_old_holders(&self, migration: i32, epoch: i32) -> Result<Option<String>, sqlx::Error> {
        let mut tx = self.ledger.begin().await?;
        let holders = end_old_holders(&mut tx, locks::EPOCH + migration, epoch, self.options).await?;
        tx.commit().await?;
        Ok(Some(holders).filter(|text| !text.is_empty()))
    }

    /// The desired phase is reached: only the percentage of `ramp` may still differ.
    async fn rest(&self, state: MigrationState) -> Result<Outcome, sqlx::Error> {
        if state.is_sealed {
            self.unseal(&state).await?;
        }
        match self.aim(&state).target {
            Target::Desired(desired)
                if state.view.phase == Phase::Ramp && desired.ramp.get() != state.ramp =>
            {
                let mut tx = self.ledger.begin().await?;
                unprepared::query(
                    "update cutover.migrations set ramp_percent = $2 where id = $1 and epoch = $3",
                )
                .bind(state.id)
                .bind(i16::from(desired.ramp.get()))
                .bind(state.view.epoch)
                .execute(&mut *tx)
                .await?;
                notify(&mut tx, self.fleet).await?;
                tx.commit().await?;
                Ok(Outcome::Stepped)
            }
            Target::Hold(reason) => self.stay(state, reason).await,
            _ => self.stay(state, String::new()).await,
        }
    }

    /// Writes down what the migration waits for, when that has changed.
    async fn stay(&self, state: MigrationState, reason: String) -> Result<Outcome, sqlx::Error> {
        let target = self.aim(&state).target.phase_from(state.view.phase);
        let paused = paused(&state, target).unwrap_or_default();
        let reasons: Vec<&str> =
            [&*reason, &*paused].into_iter().chain(self.failure).filter(|text| !text.is_empty()).collect();
        let waits_for = Some(reasons.join("; ")).filter(|text| !text.is_empty());
        if state.view.phase == Phase::Contract && state.facts.contracted && !state.dropped {
            self.dropped(&state).await?;
        }
        if state.waits_for != waits_for {
            let mut tx = self.ledger.begin().await?;
            unprepared::query(
                "update cutover.migrations set waits_for = $2, waits_since = \
                 case when $2 is null then null else clock_timestamp() end where id = $1",
            )
            .bind(state.id)
            .bind(&waits_for)
            .execute(&mut *tx)
            .await?;
            tx.commit().await?;
        }
        Ok(Outcome::Still(Box::new(state), target))
    }

    /// Nobody wants to go on any more: rows may be left behind again.
    async fn unseal(&self, state: &MigrationState) -> Result<(), sqlx::Error> {
        let mut tx = self.ledger.begin().await?;
        // As a step does: else one of another driver could come in between.
        hold_fleet(&mut tx, self.fleet).await?;
        unprepared::query(
            "update cutover.epochs e set sealed_at = null, sealed_lsn = null from cutover.migrations m \
             where m.id = $1 and m.epoch = $2 and e.migration_id = m.id and e.epoch = m.epoch",
        )
        .bind(state.id)
        .bind(state.view.epoch)
        .execute(&mut *tx)
        .await?;
        tx.commit().await
    }

    /// Writes down that the old side is gone, whoever dropped it.
    async fn dropped(&self, state: &MigrationState) -> Result<(), sqlx::Error> {
        let mut tx = self.ledger.begin().await?;
        unprepared::query(
            "with gone as (update cutover.migrations set dropped_at = clock_timestamp() \
                 where id = $1 and dropped_at is null returning *) \
             insert into cutover.history (fleet, migration, event, epoch, actor, reason) \
             select fleet, name, 'old side dropped', epoch, 'cutover', '' from gone",
        )
        .bind(state.id)
        .execute(&mut *tx)
        .await?;
        tx.commit().await
    }
}

/// Until the transaction ends nobody is admitted to the fleet, and no other driver decides about it.
async fn hold_fleet(tx: &mut PgConnection, fleet: &str) -> Result<(), sqlx::Error> {
    unprepared::query("select name from cutover.fleets where name = $1 for no key update")
        .bind(fleet)
        .execute(tx)
        .await?;
    Ok(())
}

/// Whether strangers' writes are treated otherwise after the step, or what is known of the data depends on them.
fn waits_for_strangers(from: Phase, step: &Step) -> bool {
    matches!(
        (from, step),
        (Phase::Verify, Step::Move(Phase::Ramp)) | (Phase::Switch, Step::Move(Phase::Retire))
    )
}

/// Who holds up the work that is needed now, in words.
fn paused(state: &MigrationState, target: Phase) -> Option<String> {
    let by = state.paused_by.as_ref()?;
    let needed = needed_work(&state.view, state.facts, target)?;
    matches!(needed, Task::Backfill | Task::ReverseBackfill | Task::Scan)
        .then(|| format!("the work on its rows was paused by {by} (see `cutover backfill --resume`)"))
}

/// From here on no transaction of the current epoch may leave the new side behind, and those that did have ended: what
/// is counted next is all there will be. Else one of them could commit when the next epoch reads that side already.
///
/// Where standbys are read, also writes down how far they have to be: what was repaired is older than that. The epoch then
/// stays sealed until they are, or until nobody wants to go on.
async fn seal(tx: &mut PgConnection, fleet: &str, spec: &MigrationSpec) -> Result<(), sqlx::Error> {
    unprepared::query(
        "update cutover.epochs e set sealed_at = clock_timestamp() from cutover.migrations m \
         where m.fleet = $1 and m.name = $2 and e.migration_id = m.id and e.epoch = m.epoch",
    )
    .bind(fleet)
    .bind(&spec.name)
    .execute(&mut *tx)
    .await?;
    if spec.standbys.is_empty() {
        return Ok(());
    }
    // In a statement of its own, which sees what was noted until the lock was had.
    unprepared::query(
        "update cutover.epochs e set sealed_lsn = pg_current_wal_insert_lsn() from cutover.migrations m \
         where m.fleet = $1 and m.name = $2 and e.migration_id = m.id and e.epoch = m.epoch and e.sealed_lsn is null \
           and not exists (select from cutover.repairs r where r.migration_id = m.id)",
    )
    .bind(fleet)
    .bind(&spec.name)
    .execute(tx)
    .await?;
    Ok(())
}

async fn open_epoch(
    tx: &mut PgConnection,
    fleet: &str,
    spec: &MigrationSpec,
    state: &MigrationState,
    to: Phase,
    aim: &Aim,
) -> Result<(), sqlx::Error> {
    let (from, epoch) = (state.view.phase, state.view.epoch + 1);
    let complete = state.view.complete.on_entering(to);
    let reason = match &aim.target {
        Target::Desired(desired) => format!("towards {desired}"),
        Target::SwitchedOff => "switched off: back to reading old".to_owned(),
        Target::Hold(reason) => reason.clone(),
    };
    unprepared::query(
        "insert into cutover.epochs (migration_id, epoch, phase, previous_phase, actor, reason) \
         values ($1, $2, $3, $4, $5, $6)",
    )
    .bind(state.id)
    .bind(epoch)
    .bind(to.name())
    .bind(from.name())
    .bind(&aim.actor)
    .bind(&reason)
    .execute(&mut *tx)
    .await?;
    unprepared::query(
        "update cutover.migrations set epoch = $2, phase = $3, old_complete = $4, new_complete = $5, \
         ramp_percent = $6, waits_for = null, waits_since = null where id = $1 and epoch = $2 - 1",
    )
    .bind(state.id)
    .bind(epoch)
    .bind(to.name())
    .bind(complete.old)
    .bind(complete.new)
    .bind(match &aim.target {
        Target::Desired(desired) => i16::from(desired.ramp.get()),
        _ => 100,
    })
    .execute(&mut *tx)
    .await?;
    if from == Phase::Retire {
        // An approval is for one stay in `retire`.
        unprepared::query("delete from cutover.approvals where migration_id = $1 and phase = 'contract'")
            .bind(state.id)
            .execute(&mut *tx)
            .await?;
    }
    if to == Phase::Off {
        // The new side has been given up, and with it what it lacks.
        unprepared::query("delete from cutover.repairs where migration_id = $1 and side = 'new'")
            .bind(state.id)
            .execute(&mut *tx)
            .await?;
    }
    unprepared::query(
        "insert into cutover.history (fleet, migration, event, epoch, actor, reason) \
         values ($1, $2, $3, $4, $5, $6)",
    )
    .bind(fleet)
    .bind(&spec.name)
    .bind(format!("{from} to {to}"))
    .bind(epoch)
    .bind(&aim.actor)
    .bind(&reason)
    .execute(&mut *tx)
    .await?;
    notify(tx, fleet).await
}

/// Tells the fleet's instances to look at the ledger now instead of at their next poll.
async fn notify(tx: &mut PgConnection, fleet: &str) -> Result<(), sqlx::Error> {
    unprepared::query("select pg_notify('cutover', $1)").bind(fleet).execute(tx).await?;
    Ok(())
}

/// Terminates the backends whose transaction has held the older epoch's lock for too long, where this role
/// may, and names all that hold it.
async fn end_old_holders(
    tx: &mut PgConnection,
    class: i32,
    epoch: i32,
    options: &DriverOptions,
) -> Result<String, sqlx::Error> {
    let holders = unprepared::query(
        "with holder as ( \
             select a.pid, coalesce(a.application_name, '') as application, \
                    extract(epoch from clock_timestamp() - a.xact_start)::bigint as age, \
                    pg_has_role(a.usesysid, 'usage') or pg_has_role('pg_signal_backend', 'usage') as may_end \
             from pg_locks l join pg_stat_activity a on a.pid = l.pid \
             where l.locktype = 'advisory' and l.classid::bigint = $1 and l.objid::bigint = $2 \
               and l.objsubid = 2 and l.granted and l.mode = 'ShareLock' \
               and l.database = (select oid from pg_database where datname = current_database())) \
         select pid, application, age, \
                case when may_end and age >= $3 then pg_terminate_backend(pid) else false end as ended \
         from holder order by age desc",
    )
    .bind(i64::from(class))
    .bind(i64::from(epoch))
    .bind(i64::try_from(options.transaction_limit.as_secs()).unwrap_or(i64::MAX))
    .fetch_all(tx)
    .await?;
    let mut named = Vec::new();
    for holder in holders {
        let (pid, application): (i32, String) = (holder.try_get("pid")?, holder.try_get("application")?);
        let age: i64 = holder.try_get::<Option<i64>, _>("age")?.unwrap_or(0);
        if holder.try_get("ended")? {
            tracing::warn!(pid, application, age, epoch, "ended a transaction of an older epoch");
        }
        named.push(format!("a transaction of epoch {epoch}, open for {age} s (pid {pid}, {application:?})"));
    }
    Ok(named.join("; "))
}
