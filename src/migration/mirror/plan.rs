use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::{PgConnection, PgPool};
use tokio::time::{sleep, timeout};

use super::delivery::{deliver_due, from_json, to_json};
use super::store::{MirrorSource, MirrorStore, StoreError};
use crate::ledger::{READ_COMMITTED, begin, repairs};
use crate::migration::batch::{
    Claim, Extent, FAILURES, Job, LIMITS, PassKind, Range, Step, TableSize, begin_unpaused, give_way, passes,
};
use crate::migration::coordinator::{Plan, PlanError};
use crate::migration::phase::{SchemaState, Task};
use crate::migration::runtime::{Migration, PinnedTx};

/// Keys at a time.
const BATCH: i64 = 200;
/// Between looks at what others are at, or at what has not arrived yet.
const PAUSE: Duration = Duration::from_millis(200);
/// How long the store is asked whether it is prepared; the driver waits for it.
const ASKED: Duration = Duration::from_secs(1);
/// The ranges of a pass over both sides: first the old side's keys, then the store's. Their ends have two parts, so that no
/// key is taken for one.
const RANGES: [&str; 2] = ["old", "new"];
/// How many keys may be on their way before a copy notes more of them.
const ON_THE_WAY: i64 = 2_000;

/// Moves rows into another database, under their keys.
///
/// In `backfill` every key is noted like a write, and delivered; a scan compares both sides there and back; on the way back
/// from `retire` the old side is made from the store. [`Mirror`](super::Mirror) is what the service writes and reads by.
/// The schema of the old side is yours to change: `contract` drops nothing.
pub struct MirrorMigration<S, M>(Arc<Inner<S, M>>);

struct Inner<S, M> {
    pool: PgPool,
    source: S,
    store: M,
    is_prepared: AtomicBool,
    sensitive: bool,
}

impl<S, M> Clone for MirrorMigration<S, M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S, M> fmt::Debug for MirrorMigration<S, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MirrorMigration").finish_non_exhaustive()
    }
}

impl<S: MirrorSource, M: MirrorStore> MirrorMigration<S, M> {
    /// From `source`, in the database of `pool` where the ledger is too, to `store`.
    pub fn new(pool: PgPool, source: S, store: M) -> Self {
        Self::with(pool, source, store, false)
    }

    /// The same, with values kept out of reports about differences.
    pub fn sensitive(pool: PgPool, source: S, store: M) -> Self {
        Self::with(pool, source, store, true)
    }

    fn with(pool: PgPool, source: S, store: M, sensitive: bool) -> Self {
        Self(Arc::new(Inner { pool, source, store, is_prepared: AtomicBool::new(false), sensitive }))
    }

    pub(crate) fn pool(&self) -> &PgPool {
        &self.0.pool
    }

    pub(crate) fn source(&self) -> &S {
        &self.0.source
    }

    pub(crate) fn store(&self) -> &M {
        &self.0.store
    }

    /// Delivers until nothing of what is noted now is left but what has been given up. Writers go on noting.
    async fn deliver_all(&self, migration: &Migration) -> Result<(), PlanError> {
        let last = repairs::last(self.pool()).await?;
        loop {
            deliver_due(self.pool(), migration.id(), self.source(), self.store()).await?;
            match repairs::left(self.pool(), migration.id(), last).await? {
                (0, _) => return Ok(()),
                (all, dead) if all == dead => {
                    return Err(PlanError::Refused(format!(
                        "{dead} rows could not be brought to the other store (see `cutover repairs`)"
                    )));
                }
                _ => sleep(PAUSE).await,
            }
        }
    }

    async fn pass(&self, sweep: PassKind, migration: &Migration) -> Result<(), PlanError> {
        let mut tx = begin_unpaused(self.pool(), sweep, migration, "").await?;
        let epoch = tx.epoch();
        // A copy goes by the old side's keys alone: what only the store has is a scan's to find.
        let count = if sweep == PassKind::Forward { 1 } else { 2 };
        let ranges = RANGES[..count].iter().map(|name| vec![(*name).to_owned(), "end".to_owned()]).collect();
        let measure = async |_: &mut PgConnection| Ok(Extent { ranges, size: TableSize::default() });
        let job = Job::open(&mut tx, migration.id(), epoch, sweep, None, measure).await?;
        tx.commit().await?;
        let Some(job) = job else { return Ok(()) };
        let mut failures = 0;
        loop {
            match self.batch(&job, sweep, migration).await {
                Ok(true) => failures = 0,
                Ok(false) => break,
                Err(PlanError::Operation(error)) if passes(&error) && failures < FAILURES => {
                    failures += 1;
                    give_way().await;
                }
                Err(error) => return Err(error),
            }
        }
        let mut tx = begin(self.pool(), READ_COMMITTED).await?;
        let (differences, found) = job.findings(&mut tx).await?;
        tx.rollback().await?;
        if differences == 0 {
            return Ok(());
        }
        let named: Vec<String> =
            found.iter().map(|(what, keys)| format!("{what}: {}", keys.concat().join(", "))).collect();
        Err(PlanError::Refused(format!("{differences} rows differ between the stores: {}", named.join("; "))))
    }

    /// `false` when the pass is over.
    async fn batch(&self, job: &Job, sweep: PassKind, migration: &Migration) -> Result<bool, PlanError> {
        if sweep == PassKind::Forward {
            // The outbox is no place for a whole table.
            migration.note("");
            while repairs::are_many(self.pool(), migration.id(), ON_THE_WAY).await? {
                let done = deliver_due(self.pool(), migration.id(), self.source(), self.store()).await?;
                if done.repaired == 0 {
                    migration.note("waits for rows to arrive at the other store (see `cutover repairs`)");
                    sleep(PAUSE).await;
                }
                self.begin(job, sweep, migration, "").await?.rollback().await?;
            }
        }
        let mut tx = self.begin(job, sweep, migration, LIMITS).await?;
        // Any of them first, so that two instances are rarely at the same one.
        let range = match job.claim(&mut tx, Some(fastrand::i16(0..2))).await? {
            Claim::Range(range) => range,
            Claim::Taken => {
                tx.rollback().await?;
                sleep(PAUSE).await;
                return Ok(true);
            }
            Claim::Nothing => {
                tx.rollback().await?;
                if sweep == PassKind::Forward {
                    self.deliver_all(migration).await?;
                }
                let mut tx = self.begin(job, sweep, migration, "").await?;
                job.finish(&mut tx, TableSize::default()).await?;
                tx.commit().await?;
                return Ok(false);
            }
        };
        let (keys, next) = self.keys(&mut tx, &range).await?;
        let mut step = Step { rows: keys.len() as i64, ..Step::default() };
        if sweep == PassKind::Forward {
            repairs::write_all(&mut tx, migration.id(), &keys).await?;
        } else {
            // Key by key: a transaction that waits for another store all the while is in everybody's way. Two
            // instances at the same keys do no harm.
            tx.rollback().await?;
            for key in &keys {
                match sweep {
                    PassKind::Back => self.bring_back(job, migration, key).await?,
                    _ => step.differences += i64::from(self.compare(job, migration, key).await?),
                }
            }
            tx = self.begin(job, sweep, migration, "").await?;
            match job.claim(&mut tx, Some(range.number)).await? {
                Claim::Range(now) if (now.number, &now.from) == (range.number, &range.from) => {}
                // Somebody else was faster.
                _ => {
                    tx.rollback().await?;
                    return Ok(true);
                }
            }
        }
        let done = next.map_or_else(|| range.to.clone(), |next| vec![next]);
        let total = job.advance(&mut tx, &range, &done, &step).await?;
        tx.commit().await?;
        migration.work().did(sweep.kind(), step.rows);
        migration.work().expects(sweep.kind(), total);
        Ok(true)
    }

    async fn begin(
        &self,
        job: &Job,
        sweep: PassKind,
        migration: &Migration,
        limits: &str,
    ) -> Result<PinnedTx, PlanError> {
        let tx = begin_unpaused(self.pool(), sweep, migration, limits).await?;
        if tx.epoch() == job.epoch { Ok(tx) } else { Err(PlanError::PhaseLeft) }
    }

    /// The range's next keys, and where the ones after them begin.
    async fn keys(
        &self,
        tx: &mut PgConnection,
        range: &Range,
    ) -> Result<(Vec<String>, Option<String>), PlanError> {
        // A range begins where the one before ends.
        let after = match range.from.as_deref() {
            Some([key]) => Some(&**key),
            _ => None,
        };
        if range.number == 0 {
            let keys = self.source().keys(tx, after, BATCH).await?;
            let next = keys.last().filter(|_| keys.len() as i64 == BATCH).cloned();
            return Ok((keys, next));
        }
        self.store().keys(after).await.map_err(refused)
    }

    /// Whether the sides differ, which counts when a second look says so too.
    async fn compare(&self, job: &Job, migration: &Migration, key: &str) -> Result<bool, PlanError> {
        for is_second in [false, true] {
            let mut tx = self.begin(job, PassKind::Compare, migration, "").await?;
            // What is on its way is no difference, since nobody reads the store before it has arrived. So it must not
            // have been on its way before the store was looked at nor after, and the row must be the same.
            let before = self.source().read(&mut tx, key).await?;
            let was_noted = repairs::is_noted(&mut *tx, migration.id(), key).await?;
            let kept = from_json(self.store().get(key).await.map_err(refused)?).map_err(refused)?;
            let is_noted = repairs::is_noted(&mut *tx, migration.id(), key).await?;
            let row = self.source().read(&mut tx, key).await?;
            if was_noted || is_noted || before != row || kept == row {
                tx.rollback().await?;
                return Ok(false);
            }
            if is_second {
                self.record(&mut tx, job, key, row.as_ref(), kept.as_ref()).await?;
                tx.commit().await?;
            } else {
                tx.rollback().await?;
                sleep(PAUSE).await;
            }
        }
        Ok(true)
    }

    async fn record(
        &self,
        tx: &mut PgConnection,
        job: &Job,
        key: &str,
        row: Option<&S::Row>,
        kept: Option<&S::Row>,
    ) -> Result<(), PlanError> {
        let what = match (row, kept) {
            (None, _) => "extra",
            (_, None) => "missing",
            _ => "different",
        };
        tracing::warn!(key, what, "the stores differ");
        let values = [to_json(row).map_err(refused)?, to_json(kept).map_err(refused)?];
        Ok(job.differs(tx, &[key.to_owned()], what, values, self.0.sensitive).await?)
    }

    /// Makes the old side of a key what the store says, unless a writer has noted it: then the old side is the newer.
    async fn bring_back(&self, job: &Job, migration: &Migration, key: &str) -> Result<(), PlanError> {
        loop {
            let mut tx = self.begin(job, PassKind::Back, migration, LIMITS).await?;
            let done = async {
                if let Some(version) = repairs::lock(&mut tx, migration.id(), key).await? {
                    let kept = from_json(self.store().get(key).await.map_err(refused)?).map_err(refused)?;
                    self.source().write(&mut tx, key, kept.as_ref()).await?;
                    repairs::settle(&mut *tx, migration.id(), key, version).await?;
                }
                Ok::<_, PlanError>(())
            };
            match done.await {
                Ok(()) => return Ok(tx.commit().await?),
                Err(PlanError::Operation(error)) if passes(&error) => {
                    tx.rollback().await?;
                    give_way().await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

#[async_trait]
impl<S: MirrorSource, M: MirrorStore> Plan for MirrorMigration<S, M> {
    async fn schema_state(&self, _: Option<i32>, _: &mut PgConnection) -> Result<SchemaState, sqlx::Error> {
        // Asked until it is prepared once: a store that is away must not keep the fleet from going back.
        if !self.0.is_prepared.load(Ordering::Relaxed)
            && let Ok(Ok(true)) = timeout(ASKED, self.store().is_prepared()).await
        {
            self.0.is_prepared.store(true, Ordering::Relaxed);
        }
        Ok(SchemaState { expanded: self.0.is_prepared.load(Ordering::Relaxed), contracted: true })
    }

    async fn run(&self, task: Task, migration: &Migration) -> Result<(), PlanError> {
        match task {
            Task::Expand => self.store().prepare().await.map_err(refused),
            Task::Backfill => self.pass(PassKind::Forward, migration).await,
            Task::Repair => self.deliver_all(migration).await,
            Task::ReverseBackfill => self.pass(PassKind::Back, migration).await,
            Task::Scan => self.pass(PassKind::Compare, migration).await,
            Task::Contract => Ok(()),
        }
    }
}

fn refused(error: StoreError) -> PlanError {
    PlanError::NotNow(format!("the other store: {error}"))
}
