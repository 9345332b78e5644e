//! What a mirror migration does in each phase.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::{PgConnection, PgPool};
use tokio::time::{sleep, timeout};

use super::delivery::{deliver_due, from_json, to_json};
use super::store::{MirrorSource, MirrorStore, StoreError};
use crate::config::describe_source;
use crate::ledger::jobs::{Claim, Job, Progress, Range, TableSize};
use crate::ledger::{begin_work, differences, repairs};
use crate::migration::batch::job::{self, Measured};
use crate::migration::batch::{BATCH_LIMITS, MAX_FAILURES, PassKind, back_off, begin_unpaused, is_transient};
use crate::migration::coordinator::{Plan, PlanError};
use crate::migration::phase::{Phase, SchemaState, Task};
use crate::migration::runtime::{Migration, PinnedTx};

/// How many keys make up a batch.
const BATCH: i64 = 200;
/// Time between two checks for ranges that other instances hold, or for rows that have not arrived.
const POLL: Duration = Duration::from_millis(200);
/// How long the driver waits for the store's answer whether it is prepared.
const PREPARED_TIMEOUT: Duration = Duration::from_secs(1);
/// The ranges of a pass over both sides: the keys of the old side, and the keys of the store. The end of a range has two
/// parts, so that it cannot be mistaken for a key.
const RANGES: [&str; 2] = ["old", "new"];
/// How many keys may wait for delivery before a copy records more of them.
const MAX_PENDING: i64 = 2_000;

/// Moves rows into another database, under their keys.
///
/// In `backfill` every key is recorded like a write, and delivered. A scan compares the rows of both sides. On the way back
/// from `retire` the old side is written from the store. The service writes and reads with [`Mirror`](super::Mirror).
/// `contract` drops nothing: the schema of the old side is yours to change.
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
    /// A migration from `source` to `store`. `pool` is a pool of the database that has the source and the ledger.
    pub fn new(pool: PgPool, source: S, store: M) -> Self {
        Self::with(pool, source, store, false)
    }

    /// The same, with values left out of reports about differences.
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

    /// Delivers until no row that is recorded now is left, except rows that were given up. Writers may record more.
    async fn deliver_all(&self, migration: &Migration) -> Result<(), PlanError> {
        let tx = migration.begin_work(self.pool()).await?;
        let phase = tx.phase();
        tx.rollback().await?;
        if phase == Phase::Retire {
            // The rows of the old side are outdated.
            return Ok(());
        }
        let last = repairs::next_version(self.pool()).await?;
        loop {
            deliver_due(self.pool(), migration.id(), self.source(), self.store()).await?;
            match repairs::count_until(self.pool(), migration.id(), last).await? {
                (0, _) => return Ok(()),
                (all, dead) if all == dead => {
                    return Err(PlanError::Refused(format!(
                        "{dead} rows could not be delivered to the other store; `cutover repairs` shows why, and `cutover repairs --retry` \
                         tries them again"
                    )));
                }
                _ => sleep(POLL).await,
            }
        }
    }

    async fn pass(&self, kind: PassKind, migration: &Migration) -> Result<(), PlanError> {
        let mut tx = begin_unpaused(self.pool(), kind, migration, "").await?;
        let epoch = tx.epoch();
        // A copy visits the keys of the old side only. A scan finds rows that only the store has.
        let count = if kind == PassKind::Forward { 1 } else { 2 };
        let range_ends =
            RANGES[..count].iter().map(|name| vec![(*name).to_owned(), "end".to_owned()]).collect();
        let measure = async |_: &mut PgConnection| Ok(Measured { range_ends, size: TableSize::default() });
        let job = job::open(&mut tx, migration.id(), epoch, kind, None, measure).await?;
        tx.commit().await?;
        let Some(job) = job else { return Ok(()) };
        let mut failures = 0;
        loop {
            match self.batch(&job, kind, migration).await {
                Ok(true) => failures = 0,
                Ok(false) => break,
                Err(PlanError::Operation(error)) if is_transient(&error) && failures < MAX_FAILURES => {
                    failures += 1;
                    back_off().await;
                }
                Err(error) => return Err(error),
            }
        }
        let mut tx = begin_work(self.pool()).await?;
        let found =
            job::findings(&mut tx, &job, |what, keys| format!("{what}: {}", keys.concat().join(", ")))
                .await?;
        tx.rollback().await?;
        match found {
            None => Ok(()),
            Some((count, found)) => Err(PlanError::Refused(format!(
                "{} between the stores: {found}. Correct these rows, or run `cutover set-phase <migration> \
                 expand` and go forward again for another copy",
                job::rows_differ(count, "")
            ))),
        }
    }

    /// Runs the next batch. `false` if the pass has finished.
    async fn batch(&self, job: &Job, kind: PassKind, migration: &Migration) -> Result<bool, PlanError> {
        if kind == PassKind::Forward {
            // Keeps the number of recorded rows small.
            migration.note("");
            while repairs::has_at_least(self.pool(), migration.id(), MAX_PENDING).await? {
                let done = deliver_due(self.pool(), migration.id(), self.source(), self.store()).await?;
                if done.repaired == 0 {
                    migration.note(
                        "rows to arrive at the other store; to unblock: correct the errors that `cutover repairs` shows",
                    );
                    sleep(POLL).await;
                }
                self.begin(job, kind, migration, "").await?.rollback().await?;
            }
        }
        let mut tx = self.begin(job, kind, migration, BATCH_LIMITS).await?;
        // A random range, so that two instances rarely want the same one.
        let range = match job.claim(&mut tx, Some(fastrand::i16(0..2))).await? {
            Claim::Range(range) => range,
            Claim::Taken => {
                tx.rollback().await?;
                sleep(POLL).await;
                return Ok(true);
            }
            Claim::Lost => return Err(job::lost(kind)),
            Claim::Nothing => {
                tx.rollback().await?;
                if kind == PassKind::Forward {
                    self.deliver_all(migration).await?;
                }
                let mut tx = self.begin(job, kind, migration, "").await?;
                job::finish(&mut tx, job, kind, TableSize::default()).await?;
                tx.commit().await?;
                return Ok(false);
            }
        };
        let (keys, next) = self.keys(&mut tx, &range).await?;
        let mut progress = Progress { rows: keys.len() as i64, ..Progress::default() };
        if kind == PassKind::Forward {
            repairs::record_all(&mut tx, migration.id(), &keys).await?;
        } else {
            // One transaction per key, because a transaction that waits for another store holds up others. Two instances
            // at the same keys do no harm.
            tx.rollback().await?;
            for key in &keys {
                match kind {
                    PassKind::Back => self.bring_back(job, migration, key).await?,
                    _ => progress.differences += i64::from(self.compare(job, migration, key).await?),
                }
            }
            tx = self.begin(job, kind, migration, "").await?;
            match job.claim(&mut tx, Some(range.number)).await? {
                Claim::Range(now) if (now.number, &now.from) == (range.number, &range.from) => {}
                // Another instance has done these keys.
                _ => {
                    tx.rollback().await?;
                    return Ok(true);
                }
            }
        }
        let done = next.map_or_else(|| range.to.clone(), |next| vec![next]);
        let total = job.advance(&mut tx, &range, &done, &progress).await?;
        tx.commit().await?;
        migration.work().did(kind.name(), progress.rows);
        migration.work().expects(kind.name(), total);
        Ok(true)
    }

    async fn begin(
        &self,
        job: &Job,
        kind: PassKind,
        migration: &Migration,
        limits: &str,
    ) -> Result<PinnedTx, PlanError> {
        let tx = begin_unpaused(self.pool(), kind, migration, limits).await?;
        if tx.epoch() == job.epoch { Ok(tx) } else { Err(PlanError::PhaseLeft) }
    }

    /// The next keys of the range, and the checkpoint after them.
    async fn keys(
        &self,
        tx: &mut PgConnection,
        range: &Range,
    ) -> Result<(Vec<String>, Option<String>), PlanError> {
        // The first checkpoint of a range is the end of the range before, which has two parts.
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

    /// Whether the sides differ. A difference counts if a second comparison confirms it.
    async fn compare(&self, job: &Job, migration: &Migration, key: &str) -> Result<bool, PlanError> {
        for is_second in [false, true] {
            let mut tx = self.begin(job, PassKind::Compare, migration, "").await?;
            // A row that waits for delivery is no difference, because the store is not read for it. So the key must not be
            // recorded before or after the store is read, and the row must be the same before and after.
            let before = self.source().read(&mut tx, key).await?;
            let was_recorded = repairs::is_recorded(&mut *tx, migration.id(), key).await?;
            let kept = from_json(self.store().get(key).await.map_err(refused)?).map_err(refused)?;
            let is_recorded = repairs::is_recorded(&mut *tx, migration.id(), key).await?;
            let row = self.source().read(&mut tx, key).await?;
            if was_recorded || is_recorded || before != row || kept == row {
                tx.rollback().await?;
                return Ok(false);
            }
            if is_second {
                self.record(&mut tx, job, key, row.as_ref(), kept.as_ref()).await?;
                tx.commit().await?;
            } else {
                tx.rollback().await?;
                sleep(POLL).await;
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
        tracing::warn!(key, what, "sides differ");
        let values = [to_json(row).map_err(refused)?, to_json(kept).map_err(refused)?];
        Ok(differences::record(tx, job, &[key.to_owned()], what, values, self.0.sensitive).await?)
    }

    /// Writes the old side of a key from the store, unless the key is recorded: then the old side is newer.
    async fn bring_back(&self, job: &Job, migration: &Migration, key: &str) -> Result<(), PlanError> {
        let mut failures = 0;
        loop {
            let mut tx = self.begin(job, PassKind::Back, migration, BATCH_LIMITS).await?;
            let done = async {
                if let Some(record) = repairs::lock_key(&mut tx, migration.id(), key).await? {
                    let kept = from_json(self.store().get(key).await.map_err(refused)?).map_err(refused)?;
                    self.source().write(&mut tx, key, kept.as_ref()).await?;
                    repairs::remove(&mut *tx, migration.id(), &record).await?;
                }
                Ok::<_, PlanError>(())
            };
            match done.await {
                Ok(()) => return Ok(tx.commit().await?),
                Err(PlanError::Operation(error)) if is_transient(&error) && failures < MAX_FAILURES => {
                    failures += 1;
                    tx.rollback().await?;
                    back_off().await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

#[async_trait]
impl<S: MirrorSource, M: MirrorStore> Plan for MirrorMigration<S, M> {
    async fn schema_state(&self, _: Option<i32>, _: &mut PgConnection) -> Result<SchemaState, sqlx::Error> {
        // It is not checked again once it was prepared: an unreachable store must not keep the fleet from going back.
        if !self.0.is_prepared.load(Ordering::Relaxed)
            && let Ok(Ok(true)) = timeout(PREPARED_TIMEOUT, self.store().is_prepared()).await
        {
            self.0.is_prepared.store(true, Ordering::Relaxed);
        }
        Ok(SchemaState::new(self.0.is_prepared.load(Ordering::Relaxed), true))
    }

    async fn run(&self, task: Task, migration: &Migration) -> Result<(), PlanError> {
        match task {
            Task::Expand => self.store().prepare().await.map_err(refused),
            Task::Backfill => self.pass(PassKind::Forward, migration).await,
            Task::Repair => self.deliver_all(migration).await,
            Task::ReverseBackfill => self.pass(PassKind::Back, migration).await,
            Task::Scan => self.pass(PassKind::Compare, migration).await,
            Task::CarryOver | Task::Enforce | Task::Relax | Task::Contract => Ok(()),
        }
    }
}

fn refused(error: StoreError) -> PlanError {
    PlanError::NotNow(format!("the other store failed: {}", describe_source(&*error)))
}
