//! The part of the agent that follows the ledger: it adopts new epochs and acknowledges them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::admission::{self, schema_problem};
use super::entry::{Ending, Entry};
use super::memory::Memory;
use super::retry::Retry;
use super::spec::MigrationSpec;
use crate::fleet::{Fleet, Membership};
use crate::health::{Criticality, Signal};
use crate::ledger::{LedgerError, NO_NOTIFICATIONS, acknowledgements, fleets, instances, migrations};
use crate::migration::phase::{Phase, may_acknowledge};
use crate::migration::runtime::Migration;

/// How often the ledger is read if it sends no notifications.
const POLL: Duration = Duration::from_millis(500);
/// How often it is read while notifications arrive, because one may get lost.
const POLL_IF_NOTIFIED: Duration = Duration::from_secs(2);
/// How long the ledger may take to answer, operations that block an acknowledgement included.
const LIMIT: Duration = Duration::from_secs(2);
/// The pauses between two counts of the open operations that an acknowledgement waits for: first, longest.
const COUNT: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));

/// The result of reading the ledger once.
enum Progress {
    /// Everything is acknowledged.
    Acknowledged,
    /// Not admitted, or the ledger did not record the acknowledgement.
    NotYet,
    /// Operations at an older epoch block an acknowledgement.
    OperationsOpen,
}

/// Follows the ledger for one instance.
pub(crate) struct Follower {
    fleet: Fleet,
    migrations: Arc<[(MigrationSpec, Migration)]>,
    /// The id under which this instance was admitted.
    admitted: Option<i64>,
    /// The last epoch acknowledged, by migration id, as the ledger has it.
    acknowledged: HashMap<i32, i32>,
    /// How declared migrations have ended, by id, as last reported.
    ended: HashMap<i32, Ending>,
    memory: Memory,
    deploy_guard: Signal,
    notifications: Signal,
    retry: Retry,
}

impl Follower {
    pub(crate) fn new(
        fleet: Fleet,
        migrations: Arc<[(MigrationSpec, Migration)]>,
        deploy_guard: Signal,
        notifications: Signal,
    ) -> Self {
        Self {
            fleet,
            migrations,
            admitted: None,
            acknowledged: HashMap::new(),
            ended: HashMap::new(),
            memory: Memory::default(),
            deploy_guard,
            notifications,
            retry: Retry::default(),
        }
    }

    pub(crate) async fn run(mut self) {
        let mut membership = self.fleet.membership();
        // The membership that is followed. The lease of another one is not extended before it is taken up here.
        let mut followed = None;
        let mut notices = self.fleet.ledger().notices(self.fleet.name());
        loop {
            if notices.are_heard() {
                self.notifications.ok();
            } else {
                self.notifications.warn(NO_NOTIFICATIONS);
            }
            let now = *membership.borrow_and_update();
            let mut pause = POLL;
            match now {
                Membership::Out => self.go_out(),
                Membership::Joined(id) => {
                    if followed != Some(id) {
                        // The time between two memberships may have passed unnoticed.
                        self.go_out();
                        followed = Some(id);
                        self.fleet.take_up(id);
                    }
                    let progress = tokio::select! {
                        progress = timeout(LIMIT, self.follow(id)) => progress,
                        _ = membership.changed() => continue,
                    };
                    let progress = match progress {
                        Ok(progress) => progress.map_err(LedgerError::from),
                        Err(_) => Err(LedgerError::Timeout { limit: LIMIT }),
                    };
                    pause = self.pause_after(progress, notices.are_heard());
                }
            }
            tokio::select! {
                changed = membership.changed() => if changed.is_err() { return },
                () = notices.next() => {}
                () = sleep(pause) => {}
            }
        }
    }

    /// How long to wait before the ledger is read again. A failure is not retried more slowly: the lease may depend on it.
    fn pause_after(&mut self, progress: Result<Progress, LedgerError>, is_notified: bool) -> Duration {
        match progress {
            Ok(progress) => {
                if self.retry.succeeded() {
                    tracing::info!("following the ledger again");
                }
                match progress {
                    Progress::Acknowledged if is_notified => POLL_IF_NOTIFIED,
                    Progress::Acknowledged | Progress::NotYet => POLL,
                    Progress::OperationsOpen => COUNT.1,
                }
            }
            Err(error) => {
                if self.retry.failed(&error.to_string(), POLL).is_new {
                    tracing::warn!(%error, "could not follow the ledger; retrying");
                }
                POLL
            }
        }
    }

    fn go_out(&mut self) {
        self.admitted = None;
        for (_, migration) in self.migrations.iter() {
            migration.gate().shut();
        }
        self.deploy_guard.fail("not a member of the fleet until the lease is renewed");
    }

    /// Makes the lease and the admission critical for readiness only while a declared migration is past `off`. Before
    /// that, a lost membership is no reason to become unready. A build that was never admitted is not ready in any
    /// case.
    fn set_criticality(&self, entries: &[Entry]) {
        let declared = |entry: &&Entry| self.migrations.iter().any(|(_, migration)| entry.is_of(migration));
        let is_critical = entries.iter().filter(declared).any(Entry::is_past_off);
        let criticality = if is_critical { Criticality::Critical } else { Criticality::Degrades };
        self.deploy_guard.set_criticality(criticality);
        self.fleet.set_lease_criticality(criticality);
    }

    /// Says which declared migrations have ended, so that their code can be removed.
    fn report_endings(&mut self, entries: &[Entry]) {
        let mut abandoned = Vec::new();
        let mut reported = HashMap::new();
        for (_, migration) in self.migrations.iter() {
            let entry = entries.iter().find(|entry| entry.is_of(migration));
            let ended = entry.and_then(|entry| entry.ended);
            let name = migration.name();
            migration.work().set_removable(ended.is_some());
            reported.extend(ended.map(|ended| (migration.id(), ended)));
            match ended {
                Some(Ending::Finished) if !self.ended.contains_key(&migration.id()) => tracing::info!(
                    migration = name,
                    "the migration is finished: its `DualWrite` and the code of the old side can be removed"
                ),
                Some(Ending::Finished) => {}
                Some(Ending::Abandoned) => abandoned.push(format!("{name:?}")),
                None => {}
            }
        }
        if abandoned.is_empty() {
            self.deploy_guard.ok();
        } else {
            let reason = format!(
                "this build declares migration {}, which is abandoned, and uses the old side; remove its `DualWrite` and \
                 the code of the new side",
                abandoned.join(", ")
            );
            if reported != self.ended {
                tracing::warn!(reason, "an abandoned migration is declared");
            }
            self.deploy_guard.warn(reason);
        }
        self.ended = reported;
    }

    async fn follow(&mut self, id: i64) -> Result<Progress, sqlx::Error> {
        if self.admitted.is_none() {
            self.seek_admission(id).await?;
        } else {
            self.adopt(id).await?;
        }
        if self.admitted.is_some() { self.acknowledge(id).await } else { Ok(Progress::NotYet) }
    }

    /// Requests admission. The lock on the fleet's row keeps moves out until the declaration is visible.
    async fn seek_admission(&mut self, id: i64) -> Result<(), sqlx::Error> {
        for (spec, migration) in self.migrations.iter() {
            admission::baseline(self.fleet.ledger(), self.fleet.name(), migration.id(), spec).await?;
        }
        let mut tx = self.fleet.ledger().begin().await?;
        fleets::lock_for_admission(&mut tx, self.fleet.name()).await?;
        let entries = Entry::of_fleet(&mut tx, self.fleet.name(), id).await?;
        self.memory.follow(instances::server_run(&mut tx).await?);
        let lost = self.migrations.iter().find(|(_, migration)| {
            let is_lost = !entries.iter().any(|entry| entry.is_of(migration));
            is_lost && self.memory.refusal(migration.name(), None).is_none()
        });
        if let Some((_, lost)) = lost {
            tx.rollback().await?;
            return self.register_again(lost.clone()).await;
        }
        let mut refusals: Vec<String> = entries.iter().filter_map(|entry| self.refusal(entry)).collect();
        for (spec, migration) in self.migrations.iter() {
            let entry = entries.iter().find(|entry| entry.is_of(migration));
            refusals.extend(self.memory.refusal(migration.name(), entry));
            refusals.extend(schema_problem(&mut tx, spec, entry).await?);
        }
        let refusal = Some(refusals.join("; ")).filter(|text| !text.is_empty());
        if !instances::admit(&mut tx, id, refusal.as_deref()).await? {
            return Ok(());
        }
        if let Some(reason) = refusal {
            tx.commit().await?;
            self.deploy_guard.set_criticality(Criticality::Critical);
            self.deploy_guard.fail(reason);
            return Ok(());
        }
        for (spec, migration) in self.migrations.iter() {
            let (min, max) = (spec.range.min().name(), spec.range.max().name());
            acknowledgements::declare(&mut tx, id, migration.id(), min, max).await?;
        }
        tx.commit().await?;
        self.acknowledged.clear();
        for (_, migration) in self.migrations.iter() {
            if let Some(entry) = entries.iter().find(|entry| entry.is_of(migration)) {
                migration.gate().open(entry.epoch, entry.phase, entry.ramp);
                self.memory.keep(entry);
            }
        }
        self.admitted = Some(id);
        self.set_criticality(&entries);
        self.report_endings(&entries);
        Ok(())
    }

    /// Registers a migration that is missing in the ledger after a restore or a failover to a lagging standby.
    async fn register_again(&self, migration: Migration) -> Result<(), sqlx::Error> {
        let mut tx = self.fleet.ledger().begin().await?;
        let id = migrations::register(&mut tx, self.fleet.name(), migration.name()).await?;
        tx.commit().await?;
        tracing::warn!(
            migration = migration.name(),
            id,
            "the migration was missing in the ledger; registered it again"
        );
        migration.renumber(id);
        Ok(())
    }

    /// Why this build cannot run at the migration's present phase.
    fn refusal(&self, entry: &Entry) -> Option<String> {
        let known = self.migrations.iter().find(|(_, migration)| entry.is_of(migration));
        entry.refusal(known.map(|(spec, _)| spec))
    }

    /// Adopts the epochs that the ledger has opened since.
    async fn adopt(&mut self, id: i64) -> Result<(), sqlx::Error> {
        let entries = Entry::declared(&self.fleet, &self.migrations, id).await?;
        self.set_criticality(&entries);
        for (_, migration) in self.migrations.iter() {
            let entry = entries.iter().find(|entry| entry.is_of(migration));
            match (entry.and_then(|entry| Some((entry, entry.acknowledged?))), migration.current()) {
                // The next epoch, or the same one with another percentage.
                (Some((entry, acknowledged)), Some((epoch, phase)))
                    if entry.epoch == epoch + 1 || (entry.epoch == epoch && entry.phase == phase) =>
                {
                    migration.gate().open(entry.epoch, entry.phase, entry.ramp);
                    self.memory.keep(entry);
                    // Read from the ledger, because a failover may have lost what this instance remembers.
                    self.acknowledged.insert(entry.id, acknowledged);
                }
                // The ledger is at an earlier epoch, or moved on without this instance.
                (entry, local) => {
                    let (migration, local) = (migration.name(), local.map(|(epoch, _)| epoch));
                    let ledger = entry.map(|(entry, _)| entry.epoch);
                    tracing::warn!(
                        migration,
                        local,
                        ledger,
                        "local epoch does not match the ledger; rejoining"
                    );
                    self.go_out();
                    return Ok(());
                }
            }
        }
        self.report_endings(&entries);
        Ok(())
    }

    /// Acknowledges every epoch that can be, and waits for a while for operations that block one.
    async fn acknowledge(&mut self, id: i64) -> Result<Progress, sqlx::Error> {
        let began = Instant::now();
        let mut pause = COUNT.0;
        loop {
            let mut open = Vec::new();
            let mut ready = Vec::new();
            for (_, migration) in self.migrations.iter() {
                let Some((epoch, phase)) = migration.current() else { continue };
                if self.acknowledged.get(&migration.id()).is_some_and(|known| *known >= epoch) {
                    continue;
                }
                let older = migration.gate().older_open();
                if may_acknowledge(older) {
                    ready.push((migration.id(), epoch, phase));
                } else {
                    open.push((migration.id(), i32::try_from(older).unwrap_or(i32::MAX)));
                }
            }
            if !ready.is_empty() && !self.record(id, &ready).await? {
                return Ok(Progress::NotYet);
            }
            if open.is_empty() {
                return Ok(Progress::Acknowledged);
            }
            if began.elapsed() > POLL {
                // Report what blocks it and read the ledger again: the lease may have ended meanwhile.
                self.report_open(id, &open).await?;
                return Ok(Progress::OperationsOpen);
            }
            sleep(pause).await;
            pause = (pause * 2).min(COUNT.1);
        }
    }

    /// Acknowledges these epochs. `false` if the ledger did not record all of them.
    async fn record(&mut self, id: i64, ready: &[(i32, i32, Phase)]) -> Result<bool, sqlx::Error> {
        let epochs: Vec<(i32, i32, &str)> =
            ready.iter().map(|(migration, epoch, phase)| (*migration, *epoch, phase.name())).collect();
        let recorded = acknowledgements::record(self.fleet.ledger(), id, &epochs).await?;
        self.acknowledged.extend(recorded.iter().map(|row| (row.migration_id, row.epoch)));
        Ok(recorded.len() == ready.len())
    }

    async fn report_open(&self, id: i64, open: &[(i32, i32)]) -> Result<(), sqlx::Error> {
        let mut tx = self.fleet.ledger().begin().await?;
        for (migration, count) in open {
            acknowledgements::report_older_open(&mut tx, id, *migration, *count).await?;
        }
        tx.commit().await
    }
}
