//! What the service writes and reads by.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::delivery::{deliver_due, from_json, to_json};
use super::plan::MirrorMigration;
use super::store::{MirrorSource, MirrorStore, StoreError};
use crate::ledger::repairs::{self, Repair};
use crate::migration::dual::Repaired;
use crate::migration::phase::Side;
use crate::migration::runtime::{Error, Key, Migration, PinnedTx};

/// How long a commit waits for its rows to arrive before it leaves them to [`Mirror::run_delivery`].
const INLINE_DELIVERY: Duration = Duration::from_millis(500);
/// Time between two queries for rows that are due, and the longest time after a series of failures.
const POLL: Duration = Duration::from_millis(250);
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// The error of an operation on two databases.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MirrorError {
    /// The error of the migration or of the service's own database.
    #[error(transparent)]
    Migration(#[from] Error),
    /// The error of the other store.
    #[error("the other store: {0}")]
    Store(StoreError),
}

impl From<sqlx::Error> for MirrorError {
    fn from(error: sqlx::Error) -> Self {
        Self::Migration(error.into())
    }
}

/// Rows on two sides in two databases, written and read according to the migration's phase.
///
/// ```
/// use cutover::migration::Migration;
/// use cutover::migration::mirror::{Mirror, MirrorError, MirrorMigration, MirrorSource, MirrorStore};
///
/// async fn pay<S, M>(mirror: Mirror<S, M>, row: S::Row) -> Result<(), MirrorError>
/// where
///     S: MirrorSource,
///     M: MirrorStore,
/// {
///     let mut tx = mirror.begin().await?;
///     tx.put("order-7", Some(&row)).await?;
///     tx.commit().await?;
///     let row = mirror.read("order-7").await?;
/// #   let _ = row;
///     Ok(())
/// }
/// ```
pub struct Mirror<S, M> {
    migration: Migration,
    plan: MirrorMigration<S, M>,
    seed: u64,
}

impl<S, M> Clone for Mirror<S, M> {
    fn clone(&self) -> Self {
        Self { migration: self.migration.clone(), plan: self.plan.clone(), seed: self.seed }
    }
}

impl<S, M> fmt::Debug for Mirror<S, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mirror").field("migration", &self.migration).finish_non_exhaustive()
    }
}

impl<S: MirrorSource, M: MirrorStore> Mirror<S, M> {
    /// The two sides of a migration whose plan is `plan`. Every instance has to run
    /// [`run_delivery`](Mirror::run_delivery) as a task. Otherwise, outside of `backfill` and `verify`, a row that the
    /// commit did not deliver never arrives.
    pub fn new(migration: Migration, plan: MirrorMigration<S, M>) -> Self {
        let seed = Key::of(migration.name()).seed();
        Self { migration, plan, seed }
    }

    /// Begins a transaction on the service's own database, at the current epoch.
    ///
    /// # Errors
    ///
    /// As [`Migration::begin`].
    ///
    /// # Cancel safety
    ///
    /// As [`Migration::begin`].
    pub async fn begin(&self) -> Result<MirrorTx<S, M>, MirrorError> {
        let tx = self.migration.begin(self.plan.pool()).await?;
        Ok(MirrorTx { tx, mirror: self.clone(), written: Vec::new() })
    }

    /// The row under this key, from the side that the phase reads. While the other store may be behind for this key, the
    /// row comes from the service's own database.
    ///
    /// # Errors
    ///
    /// [`Error::NotInFleet`], an error of either database, or JSON in the store that is not a row.
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn read(&self, key: &str) -> Result<Option<S::Row>, MirrorError> {
        let pin = self.migration.pin()?;
        let side = Key::of(key).side(pin.phase(), pin.ramp(), self.seed);
        let pool = self.plan.pool();
        // The record is read first: a write that comes after it overlaps with this read.
        let row = if side == Side::Old || repairs::is_recorded(pool, self.migration.id(), key).await? {
            let mut connection = pool.acquire().await.map_err(Error::from)?;
            self.plan.source().read(&mut connection, key).await?
        } else {
            from_json(self.plan.store().get(key).await.map_err(MirrorError::Store)?)
                .map_err(MirrorError::Store)?
        };
        if pin.holds() { Ok(row) } else { Err(Error::NotInFleet.into()) }
    }

    /// Delivers rows that are due to the other store, once.
    ///
    /// # Errors
    ///
    /// An error of the ledger. An error of the store is recorded with the row; see `cutover repairs`.
    ///
    /// # Cancel safety
    ///
    /// Safe: each row arrives, or is tried again.
    pub async fn deliver(&self) -> Result<Repaired, MirrorError> {
        let done = deliver_due(self.plan.pool(), self.migration.id(), self.plan.source(), self.plan.store());
        Ok(done.await?)
    }

    /// Delivers rows that are due to the other store, for ever. Run it as a task on every instance.
    ///
    /// Errors are logged. After an error it waits longer, up to 30 s.
    ///
    /// # Cancel safety
    ///
    /// Safe, as [`Mirror::deliver`].
    pub async fn run_delivery(&self) {
        let mut pause = POLL;
        loop {
            match self.deliver().await {
                Ok(_) => pause = POLL,
                Err(error) => {
                    pause = (pause * 2).min(MAX_BACKOFF);
                    tracing::warn!(%error, migration = self.migration.name(), ?pause, "delivery failed; retrying");
                }
            }
            // Instances that fail together do not retry together.
            sleep(pause.mul_f64(0.75 + fastrand::f64() / 4.0)).await;
        }
    }
}

/// A pinned transaction whose rows are written on both sides. It dereferences to the [`PinnedTx`] of the service's own
/// database.
#[must_use = "a transaction that is dropped is rolled back"]
pub struct MirrorTx<S, M> {
    tx: PinnedTx,
    mirror: Mirror<S, M>,
    written: Vec<Written>,
}

/// A row that the transaction has written.
struct Written {
    key: String,
    version: i64,
    json: Option<String>,
}

impl<S: MirrorSource, M: MirrorStore> MirrorTx<S, M> {
    /// Writes the row under this key; `None` deletes it.
    ///
    /// # Errors
    ///
    /// An error of the database, or a row that cannot be written as JSON. The transaction cannot be committed afterwards.
    ///
    /// # Cancel safety
    ///
    /// Safe: if it is dropped before its end, its transaction cannot be committed.
    pub async fn put(&mut self, key: &str, row: Option<&S::Row>) -> Result<(), MirrorError> {
        let phase = self.tx.write_begins(&self.mirror.migration)?;
        if phase.writes(Side::Old) {
            self.mirror.plan.source().write(&mut self.tx, key, row).await?;
        }
        if phase.writes(Side::New) {
            let json = to_json(row).map_err(MirrorError::Store)?;
            let version = repairs::record_write(&mut self.tx, self.mirror.migration.id(), key).await?;
            self.written.push(Written { key: key.to_owned(), version, json });
        }
        self.tx.write_ended();
        Ok(())
    }

    /// Commits. Up to `switch` the rows are then delivered to the other store, for at most half a second. Rows that have not
    /// arrived by then stay recorded. From `retire` on the rows have to arrive before the commit.
    ///
    /// # Errors
    ///
    /// An error of the database. From `retire` on also an error of the store; nothing is committed then, but rows that
    /// were sent to the store may still arrive.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: whether a dropped commit took place is not known.
    pub async fn commit(self) -> Result<(), MirrorError> {
        let Self { mut tx, mirror, mut written } = self;
        let (id, store) = (mirror.migration.id(), mirror.plan.store());
        if !written.is_empty() {
            // Writes that a rollback to a savepoint has undone must not arrive. This fails in a transaction in which a
            // statement has failed, which must not be committed.
            let keys: Vec<&str> = written.iter().map(|row| &*row.key).collect();
            let versions = repairs::versions(&mut tx, id, &keys).await?;
            written.retain(|row| versions.contains(&row.version));
        }
        if !tx.phase().writes(Side::Old) {
            for row in &written {
                let is_kept = store.put(&row.key, row.version, row.json.as_deref()).await;
                if !is_kept.map_err(MirrorError::Store)? {
                    let error = format!("it has a later version of row {:?}; retry the transaction", row.key);
                    return Err(MirrorError::Store(error.into()));
                }
                repairs::remove(&mut *tx, id, &row.repair()).await.map_err(Error::from)?;
            }
            return Ok(tx.commit().await?);
        }
        tx.commit().await?;
        let arrive = async {
            for row in &written {
                if store.put(&row.key, row.version, row.json.as_deref()).await? {
                    let mut connection = mirror.plan.pool().acquire().await?;
                    repairs::remove(&mut *connection, id, &row.repair()).await?;
                }
            }
            Ok::<_, StoreError>(())
        };
        match timeout(INLINE_DELIVERY, arrive).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(%error, migration = mirror.migration.name(), "rows not delivered yet; retrying")
            }
            Err(_) => {
                tracing::debug!(migration = mirror.migration.name(), "rows not delivered yet; retrying")
            }
        }
        Ok(())
    }

    /// Rolls back.
    ///
    /// # Errors
    ///
    /// An error of the database; nothing is committed then either.
    ///
    /// # Cancel safety
    ///
    /// Safe: a dropped rollback is done before the connection is used again.
    pub async fn rollback(self) -> Result<(), MirrorError> {
        Ok(self.tx.rollback().await?)
    }
}

impl Written {
    /// The record of the row in the ledger.
    fn repair(&self) -> Repair {
        Repair {
            side: "new".to_owned(),
            key: serde_json::Value::from(&*self.key).to_string(),
            version: self.version,
        }
    }
}

impl<S, M> Deref for MirrorTx<S, M> {
    type Target = PinnedTx;

    fn deref(&self) -> &PinnedTx {
        &self.tx
    }
}

impl<S, M> DerefMut for MirrorTx<S, M> {
    fn deref_mut(&mut self) -> &mut PinnedTx {
        &mut self.tx
    }
}

impl<S, M> fmt::Debug for MirrorTx<S, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MirrorTx").field("mirror", &self.mirror).finish_non_exhaustive()
    }
}
