use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgListener, PgRow};
use sqlx::{PgConnection, Row};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::driver::{Driver, DriverOptions};
use super::migration::{Migration, Spec};
use crate::fleet::{Fleet, LedgerError, Membership};
use crate::health::{Criticality, Health, Signal};
use crate::migration::phase::{Percent, Phase, PhaseRange, may_acknowledge, may_join};

/// How often the ledger is looked at when it sends no notifications.
const POLL: Duration = Duration::from_millis(500);
/// How often the open operations are counted while an acknowledgement waits for them: from, to.
const COUNT: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));

/// This instance's part in its fleet's migrations, kept by two background tasks: one follows the ledger, takes
/// on new epochs and acknowledges them; the other drives, while this instance holds that office.
///
/// It is also the deploy guard: a build whose declared range lacks a phase in use, or that does not know a
/// migration under way, is not admitted. It stays unready, with the reason in its health report, and nobody
/// waits for it.
#[derive(Debug)]
pub struct Agent {
    fleet: Fleet,
    migrations: Arc<[(Spec, Migration)]>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.halt();
    }
}

impl Agent {
    /// Enters the migrations into the ledger where they are new, and starts to take part.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Option`] for a name that can't be used or is there twice, [`LedgerError::Database`].
    ///
    /// # Cancel safety
    ///
    /// Safe: entering a migration is idempotent.
    pub async fn start(
        fleet: Fleet,
        specs: Vec<Spec>,
        options: DriverOptions,
        health: &Health,
    ) -> Result<Self, LedgerError> {
        check(&specs)?;
        let ledger = fleet.ledger();
        let mut migrations = Vec::new();
        for spec in specs {
            let mut tx = ledger.begin().await?;
            let id = register(&mut tx, fleet.name(), &spec.name).await?;
            tx.commit().await?;
            let migration = Migration::new(&spec.name, id, fleet.lease().clone());
            migrations.push((spec, migration));
        }
        let migrations: Arc<[_]> = migrations.into();
        let guard = health.signal("deploy_guard", Criticality::Critical);
        guard.fail("not admitted to the fleet yet");
        let follower = Follower {
            fleet: fleet.clone(),
            migrations: migrations.clone(),
            admitted: None,
            acknowledged: HashMap::new(),
            guard,
        };
        let driver = Driver::new(fleet.clone(), migrations.clone(), options);
        let tasks = vec![tokio::spawn(follower.run()), tokio::spawn(driver.run())];
        Ok(Self { fleet, migrations, tasks })
    }

    /// The migration of this name, if this build declared it.
    pub fn migration(&self, name: &str) -> Option<Migration> {
        self.migrations.iter().find(|(spec, _)| spec.name == name).map(|(_, migration)| migration.clone())
    }

    /// The migrations that this build declared.
    pub fn migrations(&self) -> impl Iterator<Item = &Migration> {
        self.migrations.iter().map(|(_, migration)| migration)
    }

    /// Stops taking part: no operation begins any more, and the fleet is left.
    ///
    /// Call it when no operation is running any more.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Database`] when the fleet could not be told; the lease then runs out.
    ///
    /// # Cancel safety
    ///
    /// This instance stops at once, whatever becomes of the future.
    pub async fn leave(&self) -> Result<(), LedgerError> {
        self.halt();
        self.fleet.leave().await
    }

    fn halt(&self) {
        for task in &self.tasks {
            task.abort();
        }
        for migration in self.migrations() {
            migration.gate().shut();
        }
    }
}

fn check(specs: &[Spec]) -> Result<(), LedgerError> {
    for (index, spec) in specs.iter().enumerate() {
        let problem = if spec.name.is_empty() || spec.name.len() > 63 {
            "has to be 1 to 63 bytes long"
        } else if specs[..index].iter().any(|earlier| earlier.name == spec.name) {
            "is declared twice"
        } else {
            continue;
        };
        let problem = format!("{:?} {problem}", spec.name);
        return Err(LedgerError::Option { field: "migration.name", problem });
    }
    Ok(())
}

/// The migration's number; a new one begins at epoch 1 in `off`.
async fn register(tx: &mut PgConnection, fleet: &str, name: &str) -> Result<i32, sqlx::Error> {
    sqlx::query("select name from cutover.fleets where name = $1 for no key update")
        .bind(fleet)
        .execute(&mut *tx)
        .await?;
    let known = sqlx::query_scalar("select id from cutover.migrations where fleet = $1 and name = $2")
        .bind(fleet)
        .bind(name)
        .fetch_optional(&mut *tx)
        .await?;
    if let Some(id) = known {
        return Ok(id);
    }
    let id = sqlx::query_scalar("insert into cutover.migrations (fleet, name) values ($1, $2) returning id")
        .bind(fleet)
        .bind(name)
        .fetch_one(&mut *tx)
        .await?;
    sqlx::query(
        "insert into cutover.epochs (migration_id, epoch, phase, actor, reason) \
         values ($1, 1, 'off', 'cutover', 'first declared')",
    )
    .bind(id)
    .execute(&mut *tx)
    .await?;
    Ok(id)
}

/// What the ledger says about one migration.
struct Entry {
    id: i32,
    name: String,
    epoch: i32,
    phase: Phase,
    /// The phase of the epoch before, while that is still in use.
    also: Option<Phase>,
    ramp: Percent,
    /// What this instance has acknowledged.
    acknowledged: Option<i32>,
}

impl Entry {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let phase = |text: String| text.parse::<Phase>().map_err(|e| sqlx::Error::Decode(Box::new(e)));
        let ramp: i16 = row.try_get("ramp_percent")?;
        Ok(Self {
            id: row.try_get("id")?,
            name: row.try_get("name")?,
            epoch: row.try_get("epoch")?,
            phase: phase(row.try_get("phase")?)?,
            also: row.try_get::<Option<String>, _>("also")?.map(phase).transpose()?,
            ramp: u8::try_from(ramp).ok().and_then(Percent::new).unwrap_or(Percent::ALL),
            acknowledged: row.try_get("acknowledged")?,
        })
    }

    async fn load_all(
        connection: &mut PgConnection,
        fleet: &str,
        instance: i64,
    ) -> Result<Vec<Self>, sqlx::Error> {
        sqlx::query(
            "select m.id, m.name, m.epoch, m.phase, m.ramp_percent, p.phase as also, a.epoch as acknowledged \
             from cutover.migrations m left join cutover.epochs p \
               on p.migration_id = m.id and p.epoch = m.epoch - 1 and p.drained_at is null \
             left join cutover.acknowledgements a on a.migration_id = m.id and a.instance_id = $2 \
             where m.fleet = $1",
        )
        .bind(fleet)
        .bind(instance)
        .fetch_all(connection)
        .await?
        .iter()
        .map(Self::from_row)
        .collect()
    }
}

/// Follows the ledger.
struct Follower {
    fleet: Fleet,
    migrations: Arc<[(Spec, Migration)]>,
    /// Under which number this instance was admitted.
    admitted: Option<i64>,
    /// The last epoch acknowledged as far as the ledger knows, by migration number.
    acknowledged: HashMap<i32, i32>,
    guard: Signal,
}

impl Follower {
    async fn run(mut self) {
        let mut membership = self.fleet.membership();
        let mut listener = None;
        loop {
            let now = *membership.borrow_and_update();
            match now {
                Membership::Out => self.go_out(),
                Membership::Joined(id) => {
                    // A ledger that doesn't answer must not keep the gates open after the lease.
                    let done = tokio::select! {
                        done = timeout(POLL * 4, self.follow(id)) => done,
                        _ = membership.wait_for(|now| *now == Membership::Out) => continue,
                    };
                    if let Err(error) = done.unwrap_or(Err(sqlx::Error::PoolTimedOut)) {
                        tracing::warn!(%error, "could not follow the ledger");
                    }
                }
            }
            if listener.is_none() {
                listener = self.listen().await;
            }
            tokio::select! {
                changed = membership.changed() => if changed.is_err() { return },
                heard = hear(&mut listener) => if !heard { listener = None },
                () = sleep(POLL) => {}
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

    async fn follow(&mut self, id: i64) -> Result<(), sqlx::Error> {
        if self.admitted.is_some_and(|number| number != id) {
            self.go_out();
        }
        if self.admitted.is_none() {
            self.seek_admission(id).await?;
        } else {
            self.take_on(id).await?;
        }
        if self.admitted.is_some() {
            self.acknowledge(id).await?;
        }
        Ok(())
    }

    /// Asks to be counted. Holding the fleet's row keeps moves out until the declaration is visible.
    async fn seek_admission(&mut self, id: i64) -> Result<(), sqlx::Error> {
        let mut tx = self.fleet.ledger().begin().await?;
        sqlx::query("select name from cutover.fleets where name = $1 for share")
            .bind(self.fleet.name())
            .execute(&mut *tx)
            .await?;
        let entries = Entry::load_all(&mut tx, self.fleet.name(), id).await?;
        let refusals: Vec<String> = entries.iter().filter_map(|entry| self.refusal(entry)).collect();
        let refusal = Some(refusals.join("; ")).filter(|text| !text.is_empty());
        let alive = sqlx::query(
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
            sqlx::query(
                "insert into cutover.acknowledgements (instance_id, migration_id, lowest, highest) \
                 values ($1, $2, $3, $4) on conflict (instance_id, migration_id) do update set epoch = 0",
            )
            .bind(id)
            .bind(migration.id())
            .bind(spec.range.lowest().name())
            .bind(spec.range.highest().name())
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        self.acknowledged.clear();
        for (_, migration) in self.migrations.iter() {
            if let Some(entry) = entries.iter().find(|entry| entry.id == migration.id()) {
                migration.gate().open(id, entry.epoch, entry.phase, entry.ramp);
            }
        }
        self.admitted = Some(id);
        self.guard.ok();
        Ok(())
    }

    /// Why this build can't work while the migration is where it is.
    fn refusal(&self, entry: &Entry) -> Option<String> {
        let in_use = [Some(entry.phase), entry.also].into_iter().flatten();
        match self.migrations.iter().find(|(_, migration)| migration.id() == entry.id) {
            Some((spec, _)) if !may_join(spec.range, in_use.clone()) => Some(format!(
                "migration {:?} is in `{}`, and this build can run {}",
                entry.name, entry.phase, spec.range
            )),
            None if !may_join(PhaseRange::UNAWARE, in_use) => Some(format!(
                "migration {:?} is in `{}`, and this build does not know it",
                entry.name, entry.phase
            )),
            _ => None,
        }
    }

    /// Takes on the epochs that the ledger has opened since.
    async fn take_on(&mut self, id: i64) -> Result<(), sqlx::Error> {
        let mut tx = self.fleet.ledger().begin().await?;
        let entries = Entry::load_all(&mut tx, self.fleet.name(), id).await?;
        tx.commit().await?;
        for (_, migration) in self.migrations.iter() {
            let entry = entries.iter().find(|entry| entry.id == migration.id());
            match (entry, migration.at()) {
                // The next one, or the same one with another percentage.
                (Some(entry), Some((epoch, phase)))
                    if entry.epoch == epoch + 1 || (entry.epoch == epoch && entry.phase == phase) =>
                {
                    migration.gate().open(id, entry.epoch, entry.phase, entry.ramp);
                    // Not from memory: a failover may have lost what was said.
                    self.acknowledged.insert(entry.id, entry.acknowledged.unwrap_or(0));
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
    async fn acknowledge(&mut self, id: i64) -> Result<(), sqlx::Error> {
        let began = Instant::now();
        let mut pause = COUNT.0;
        loop {
            let mut open = Vec::new();
            let mut ready = Vec::new();
            for (_, migration) in self.migrations.iter() {
                let Some((epoch, phase)) = migration.at() else { continue };
                if self.acknowledged.get(&migration.id()) == Some(&epoch) {
                    continue;
                }
                let older = migration.gate().older_open();
                if may_acknowledge(older) {
                    ready.push((migration.id(), epoch, phase));
                } else {
                    open.push((migration.id(), i32::try_from(older).unwrap_or(i32::MAX)));
                }
            }
            if !ready.is_empty() {
                self.record(id, &ready).await?;
            }
            if open.is_empty() {
                return Ok(());
            }
            if began.elapsed() > POLL {
                // Say what is in the way and look at the ledger again: the lease may have ended meanwhile.
                return self.report_open(id, &open).await;
            }
            sleep(pause).await;
            pause = (pause * 2).min(COUNT.1);
        }
    }

    /// Acknowledges these epochs, but none that a failover has lost: the same number may stand for another phase
    /// by now, which the driver would then believe to be in use here.
    async fn record(&mut self, id: i64, ready: &[(i32, i32, Phase)]) -> Result<(), sqlx::Error> {
        let mut tx = self.fleet.ledger().begin().await?;
        let mut recorded = Vec::new();
        for (migration, epoch, phase) in ready {
            let done = sqlx::query(
                "update cutover.acknowledgements set epoch = $3, older_open = 0, waits_since = null \
                 where instance_id = $1 and migration_id = $2 and epoch < $3 \
                   and exists (select 1 from cutover.epochs where migration_id = $2 and epoch = $3 and phase = $4)",
            )
            .bind(id)
            .bind(migration)
            .bind(epoch)
            .bind(phase.name())
            .execute(&mut *tx)
            .await?;
            recorded.extend((done.rows_affected() == 1).then_some((*migration, *epoch)));
        }
        tx.commit().await?;
        self.acknowledged.extend(recorded);
        Ok(())
    }

    async fn report_open(&self, id: i64, open: &[(i32, i32)]) -> Result<(), sqlx::Error> {
        let mut tx = self.fleet.ledger().begin().await?;
        for (migration, count) in open {
            sqlx::query(
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

    async fn listen(&self) -> Option<PgListener> {
        if cfg!(cutover_break = "agree") {
            // An instance that hears of everything late is what the rule is there for.
            return None;
        }
        let mut listener = PgListener::connect_with(self.fleet.ledger().pool()).await.ok()?;
        listener.listen("cutover").await.ok()?;
        Some(listener)
    }
}

/// Waits for a notification; `false` when the connection is lost. Waits for ever without one.
async fn hear(listener: &mut Option<PgListener>) -> bool {
    match listener {
        Some(listener) => matches!(listener.try_recv().await, Ok(Some(_))),
        None => std::future::pending().await,
    }
}
