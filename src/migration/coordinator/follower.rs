//! The part of the agent that follows the ledger: takes on new epochs and acknowledges them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row};
use tokio::time::{Instant, sleep, timeout};

use super::agent::register;
use super::spec::MigrationSpec;
use super::state::named;
use crate::fleet::{Fleet, Membership};
use crate::health::Signal;
use crate::ledger::{NO_NOTIFICATIONS, unprepared};
use crate::migration::phase::{Percent, Phase, PhaseRange, may_acknowledge, may_join};
use crate::migration::runtime::Migration;

/// How often the ledger is looked at when it sends no notifications.
const POLL: Duration = Duration::from_millis(500);
/// How often it is while they arrive, should one get lost.
const POLL_IF_TOLD: Duration = Duration::from_secs(2);
/// How often the open operations are counted while an acknowledgement waits for them: from, to.
const COUNT: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));

/// What the ledger says about one migration.
pub(crate) struct Entry {
    pub(crate) id: i32,
    fleet: String,
    pub(crate) name: String,
    epoch: i32,
    pub(crate) phase: Phase,
    /// The phase of the epoch before, while that is still in use.
    also: Option<Phase>,
    ramp: Percent,
    /// The epoch that this instance has acknowledged, if the ledger knows that it takes part.
    acknowledged: Option<i32>,
}

impl Entry {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let ramp: i16 = row.try_get("ramp_percent")?;
        Ok(Self {
            id: row.try_get("id")?,
            fleet: row.try_get("fleet")?,
            name: row.try_get("name")?,
            epoch: row.try_get("epoch")?,
            phase: named(row.try_get("phase")?)?,
            also: row.try_get::<Option<&str>, _>("also")?.map(named).transpose()?,
            acknowledged: row.try_get("acknowledged")?,
            ramp: u8::try_from(ramp).ok().and_then(Percent::new).unwrap_or(Percent::ALL),
        })
    }

    /// A number alone says nothing: after a failover to a standby that lagged it may be another migration's.
    fn is_of(&self, migration: &Migration) -> bool {
        self.id == migration.id() && self.name == migration.name()
    }

    fn query(instance: i64, condition: &str) -> String {
        format!(
            "select m.id, m.fleet, m.name, m.epoch, m.phase, m.ramp_percent, p.phase as also, \
                    a.epoch as acknowledged \
             from cutover.migrations m \
             left join cutover.epochs p \
               on p.migration_id = m.id and p.epoch = m.epoch - 1 and p.drained_at is null \
             left join cutover.acknowledgements a on a.migration_id = m.id and a.instance_id = {instance} \
             where {condition}"
        )
    }

    /// The fleet's, also those that this build does not know.
    pub(crate) async fn load_all(
        connection: &mut PgConnection,
        fleet: &str,
        instance: i64,
    ) -> Result<Vec<Self>, sqlx::Error> {
        unprepared::query(AssertSqlSafe(Self::query(instance, "m.fleet = $1")))
            .bind(fleet)
            .fetch_all(connection)
            .await?
            .iter()
            .map(Self::from_row)
            .collect()
    }

    /// Why a build that declares this about the migration, or nothing, can't work while it is where it is.
    pub(crate) fn refusal(&self, declared: Option<&MigrationSpec>) -> Option<String> {
        let range = declared.map_or(PhaseRange::UNAWARE, |spec| spec.range);
        if may_join(range, [Some(self.phase), self.also].into_iter().flatten()) {
            return None;
        }
        let what = match declared {
            Some(_) => format!("this build can run {range}"),
            None => "this build does not know it".into(),
        };
        Some(format!("migration {:?} is in `{}`, and {what}", self.name, self.phase))
    }

    /// Those that this build knows, in one message.
    async fn load_known(
        fleet: &Fleet,
        migrations: &[(MigrationSpec, Migration)],
        instance: i64,
    ) -> Result<Vec<Self>, sqlx::Error> {
        if migrations.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<String> = migrations.iter().map(|(_, migration)| migration.id().to_string()).collect();
        let query = Self::query(instance, &format!("m.id in ({})", ids.join(", ")));
        let mut entries: Vec<Self> =
            fleet.ledger().ask(query).await?.iter().map(Self::from_row).collect::<Result<_, _>>()?;
        entries.retain(|entry| entry.fleet == fleet.name());
        Ok(entries)
    }
}

/// How far a look at the ledger has led.
enum Done {
    All,
    /// Not admitted, or the ledger did not take the acknowledgement: look again.
    NotYet,
    /// Operations at an older epoch stand in the way of an acknowledgement.
    OperationsOpen,
}

/// Follows the ledger.
pub(crate) struct Follower {
    fleet: Fleet,
    migrations: Arc<[(MigrationSpec, Migration)]>,
    /// Under which number this instance was admitted.
    admitted: Option<i64>,
    /// The last epoch acknowledged, by migration number, as the ledger has it.
    acknowledged: HashMap<i32, i32>,
    guard: Signal,
    hearing: Signal,
}

impl Follower {
    pub(crate) fn new(
        fleet: Fleet,
        migrations: Arc<[(MigrationSpec, Migration)]>,
        guard: Signal,
        hearing: Signal,
    ) -> Self {
        Self { fleet, migrations, admitted: None, acknowledged: HashMap::new(), guard, hearing }
    }

    pub(crate) async fn run(mut self) {
        let mut membership = self.fleet.membership();
        // The number of this life; a lease under another one is not extended before it is taken up here.
        let mut life = None;
        let mut notices = self.fleet.ledger().notices(self.fleet.name());
        loop {
            if notices.are_heard() {
                self.hearing.ok();
            } else {
                self.hearing.warn(NO_NOTIFICATIONS);
            }
            let now = *membership.borrow_and_update();
            let mut pause = POLL;
            match now {
                Membership::Out => self.go_out(),
                Membership::Joined(id) => {
                    if life != Some(id) {
                        // Also when the time between, in which this instance was out, went by unnoticed.
                        self.go_out();
                        life = Some(id);
                        self.fleet.take_up(id);
                    }
                    let done = tokio::select! {
                        done = timeout(POLL * 4, self.follow(id)) => done,
                        _ = membership.changed() => continue,
                    };
                    match done.unwrap_or(Err(sqlx::Error::PoolTimedOut)) {
                        Ok(Done::All) if notices.are_heard() => pause = POLL_IF_TOLD,
                        Ok(Done::All | Done::NotYet) => {}
                        Ok(Done::OperationsOpen) => pause = COUNT.1,
                        Err(error) => tracing::warn!(%error, "could not follow the ledger"),
                    }
                }
            }
            tokio::select! {
                changed = membership.changed() => if changed.is_err() { return },
                () = notices.next() => {}
                () = sleep(pause) => {}
            }
        }
    }

    fn go_out(&mut self) {
        self.admitted = None;
        for (_, migration) in self.migrations.iter() {
            migration.gate().shut();
        }
        self.guard.fail("out of the fleet until the lease is renewed");
    }

    async fn follow(&mut self, id: i64) -> Result<Done, sqlx::Error> {
        if self.admitted.is_none() {
            self.seek_admission(id).await?;
        } else {
            self.take_on(id).await?;
        }
        if self.admitted.is_some() { self.acknowledge(id).await } else { Ok(Done::NotYet) }
    }

    /// Asks to be counted. Holding the fleet's row keeps moves out until the declaration is visible.
    async fn seek_admission(&mut self, id: i64) -> Result<(), sqlx::Error> {
        let mut tx = self.fleet.ledger().begin().await?;
        unprepared::query("select name from cutover.fleets where name = $1 for share")
            .bind(self.fleet.name())
            .execute(&mut *tx)
            .await?;
        let entries = Entry::load_all(&mut tx, self.fleet.name(), id).await?;
        if let Some((_, lost)) = self.migrations.iter().find(|(_, m)| !entries.iter().any(|e| e.is_of(m))) {
            tx.rollback().await?;
            return self.enter_anew(lost.clone()).await;
        }
        let refusals: Vec<String> = entries.iter().filter_map(|entry| self.refusal(entry)).collect();
        let refusal = Some(refusals.join("; ")).filter(|text| !text.is_empty());
        let alive = unprepared::query(
            "update cutover.instances set admitted = $2::text is null, refusal = $2 \
             where id = $1 and lease_until > clock_timestamp()",
        )
        .bind(id)
        .bind(&refusal)
        .execute(&mut *tx)
        .await?
        .rows_affected();
        if alive == 0 {
            return Ok(());
        }
        if let Some(reason) = refusal {
            tx.commit().await?;
            self.guard.fail(reason);
            return Ok(());
        }
        for (spec, migration) in self.migrations.iter() {
            unprepared::query(
                "insert into cutover.acknowledgements (instance_id, migration_id, min_phase, max_phase) \
                 values ($1, $2, $3, $4) on conflict (instance_id, migration_id) do update set epoch = 0",
            )
            .bind(id)
            .bind(migration.id())
            .bind(spec.range.min().name())
            .bind(spec.range.max().name())
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        self.acknowledged.clear();
        for (_, migration) in self.migrations.iter() {
            if let Some(entry) = entries.iter().find(|entry| entry.is_of(migration)) {
                migration.gate().open(entry.epoch, entry.phase, entry.ramp);
            }
        }
        self.admitted = Some(id);
        self.guard.ok();
        Ok(())
    }

    /// Enters a migration that a failover to a standby that lagged, or a restore, has taken out of the ledger.
    async fn enter_anew(&self, migration: Migration) -> Result<(), sqlx::Error> {
        let mut tx = self.fleet.ledger().begin().await?;
        let id = register(&mut tx, self.fleet.name(), migration.name()).await?;
        tx.commit().await?;
        tracing::warn!(migration = migration.name(), id, "the ledger did not know the migration any more");
        migration.renumber(id);
        Ok(())
    }

    /// Why this build can't work while the migration is where it is.
    fn refusal(&self, entry: &Entry) -> Option<String> {
        let known = self.migrations.iter().find(|(_, migration)| entry.is_of(migration));
        entry.refusal(known.map(|(spec, _)| spec))
    }

    /// Takes on the epochs that the ledger has opened since.
    async fn take_on(&mut self, id: i64) -> Result<(), sqlx::Error> {
        let entries = Entry::load_known(&self.fleet, &self.migrations, id).await?;
        for (_, migration) in self.migrations.iter() {
            let entry = entries.iter().find(|entry| entry.is_of(migration));
            match (entry.and_then(|entry| Some((entry, entry.acknowledged?))), migration.current()) {
                // The next one, or the same one with another percentage.
                (Some((entry, acknowledged)), Some((epoch, phase)))
                    if entry.epoch == epoch + 1 || (entry.epoch == epoch && entry.phase == phase) =>
                {
                    migration.gate().open(entry.epoch, entry.phase, entry.ramp);
                    // Not from memory: a failover may have lost it.
                    self.acknowledged.insert(entry.id, acknowledged);
                }
                // The ledger went back or went on without us: what this instance believes is worth nothing.
                _ => {
                    tracing::warn!(migration = migration.name(), "the ledger is elsewhere: joining anew");
                    self.go_out();
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Acknowledges what can be, and waits for a while for operations that stand in the way.
    async fn acknowledge(&mut self, id: i64) -> Result<Done, sqlx::Error> {
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
                return Ok(Done::NotYet);
            }
            if open.is_empty() {
                return Ok(Done::All);
            }
            if began.elapsed() > POLL {
                // Say what is in the way and look at the ledger again: the lease may have ended meanwhile.
                self.report_open(id, &open).await?;
                return Ok(Done::OperationsOpen);
            }
            sleep(pause).await;
            pause = (pause * 2).min(COUNT.1);
        }
    }

    /// Acknowledges these epochs, but none that a failover has lost: the same number may stand for another phase
    /// by now, which the driver would then believe to be in use here. `false` when there is such a one.
    async fn record(&mut self, id: i64, ready: &[(i32, i32, Phase)]) -> Result<bool, sqlx::Error> {
        let texts: Vec<String> = ready
            .iter()
            .map(|(migration, epoch, phase)| format!("({migration}, {epoch}, '{phase}')"))
            .collect();
        let statement = format!(
            "update cutover.acknowledgements a set epoch = e.epoch, older_open = 0, waits_since = null \
             from cutover.epochs e \
             where a.instance_id = {id} and a.migration_id = e.migration_id and a.epoch < e.epoch \
               and (e.migration_id, e.epoch, e.phase) in ({}) \
             returning a.migration_id, a.epoch",
            texts.join(", ")
        );
        let recorded = self.fleet.ledger().ask(statement).await?;
        for row in &recorded {
            self.acknowledged.insert(row.try_get("migration_id")?, row.try_get("epoch")?);
        }
        Ok(recorded.len() == ready.len())
    }

    async fn report_open(&self, id: i64, open: &[(i32, i32)]) -> Result<(), sqlx::Error> {
        let mut tx = self.fleet.ledger().begin().await?;
        for (migration, count) in open {
            unprepared::query(
                "update cutover.acknowledgements set older_open = $3, \
                 waits_since = coalesce(waits_since, clock_timestamp()) \
                 where instance_id = $1 and migration_id = $2",
            )
            .bind(id)
            .bind(migration)
            .bind(count)
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await
    }
}
