use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::delivery::{deliver_due, from_json, to_json};
use super::plan::MirrorMigration;
use super::store::{MirrorSource, MirrorStore, StoreError};
use crate::ledger::repairs::{self, Note};
use crate::migration::dual::{Key, Repaired};
use crate::migration::phase::Side;
use crate::migration::runtime::{Error, Migration, PinnedTx};

/// How long a commit waits for its rows to arrive before it leaves them to whoever keeps up.
const INLINE: Duration = Duration::from_millis(500);
/// Between looks for rows that are due.
const PAUSE: Duration = Duration::from_millis(250);

/// What an operation on two databases fails with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MirrorError {
    /// The migration's, or that of the service's own database.
    #[error(transparent)]
    Migration(#[from] Error),
    /// The other store's.
    #[error("the other store: {0}")]
    Store(StoreError),
}

impl From<sqlx::Error> for MirrorError {
    fn from(error: sqlx::Error) -> Self {
        Self::Migration(error.into())
    }
}

/// Rows on two sides in two databases, written and read as the migration's phase says.
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
    /// The two sides of this migration, which has `plan` for its plan. Every instance runs [`run_delivery`](Mirror::run_delivery) as
    /// a task beside it, or what did not arrive at once never does outside of `backfill` and `verify`.
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

    /// The row under this key, from the side that the phase reads it from; from the service's own database where the
    /// other store may be behind.
    ///
    /// # Errors
    ///
    /// [`Error::NotInFleet`], either database's, or a row that can't be read as one.
    ///
    /// # Cancel safety
    ///
    /// Safe: reads only.
    pub async fn read(&self, key: &str) -> Result<Option<S::Row>, MirrorError> {
        let pin = self.migration.pin()?;
        let side = Key::of(key).side(pin.phase(), pin.ramp(), self.seed);
        let pool = self.plan.pool();
        // The note first: what is written after it was looked for overlaps with this read.
        let row = if side == Side::Old || repairs::is_noted(pool, self.migration.id(), key).await? {
            let mut connection = pool.acquire().await.map_err(Error::from)?;
            self.plan.source().read(&mut connection, key).await?
        } else {
            from_json(self.plan.store().get(key).await.map_err(MirrorError::Store)?)
                .map_err(MirrorError::Store)?
        };
        if pin.holds() { Ok(row) } else { Err(Error::NotInFleet.into()) }
    }

    /// Brings rows that are due to the other store, once.
    ///
    /// # Errors
    ///
    /// The ledger's. What the store fails with is kept with the row, see `cutover repairs`.
    ///
    /// # Cancel safety
    ///
    /// Safe: each row arrives, or is tried again.
    pub async fn deliver(&self) -> Result<Repaired, MirrorError> {
        let done = deliver_due(self.plan.pool(), self.migration.id(), self.plan.source(), self.plan.store());
        Ok(done.await?)
    }

    /// Goes on bringing rows that are due to the other store, for ever: a task of every instance.
    ///
    /// # Cancel safety
    ///
    /// Safe, as [`Mirror::deliver`].
    pub async fn run_delivery(&self) {
        loop {
            if let Err(error) = self.deliver().await {
                tracing::warn!(%error, migration = self.migration.name(), "rows for the other store could not be looked for");
            }
            sleep(PAUSE).await;
        }
    }
}

/// A pinned transaction whose rows are written on both sides. It is a [`PinnedTx`] of the service's own database too.
#[must_use = "a transaction does nothing until it is committed"]
pub struct MirrorTx<S, M> {
    tx: PinnedTx,
    mirror: Mirror<S, M>,
    written: Vec<(Note, Option<String>)>,
}

impl<S: MirrorSource, M: MirrorStore> MirrorTx<S, M> {
    /// Makes this the row under this key; without a row there is none from now on.
    ///
    /// # Errors
    ///
    /// The database's, or a row that can't be written as JSON. The transaction can't be committed then.
    ///
    /// # Cancel safety
    ///
    /// Safe: a transaction in which it was dropped can't be committed.
    pub async fn put(&mut self, key: &str, row: Option<&S::Row>) -> Result<(), MirrorError> {
        self.tx.write_begins();
        let phase = self.tx.phase();
        if phase.writes(Side::Old) {
            self.mirror.plan.source().write(&mut self.tx, key, row).await?;
        }
        if phase.writes(Side::New) {
            let json = to_json(row).map_err(MirrorError::Store)?;
            let version = repairs::write(&mut self.tx, self.mirror.migration.id(), key).await?;
            self.written.push((Note { key: key.to_owned(), version }, json));
        }
        self.tx.write_ended();
        Ok(())
    }

    /// Commits. Up to `switch` the rows are then brought to the other store, for half a second at most: what has not
    /// arrived by then stays noted. From `retire` on they have to arrive before the commit.
    ///
    /// # Errors
    ///
    /// The database's; from `retire` on the store's too, and then nothing was committed, though what it was sent may
    /// still arrive.
    ///
    /// # Cancel safety
    ///
    /// As a commit: dropped in the middle nobody knows whether it was made.
    pub async fn commit(self) -> Result<(), MirrorError> {
        let Self { mut tx, mirror, mut written } = self;
        let (id, store) = (mirror.migration.id(), mirror.plan.store());
        if !written.is_empty() {
            // What the database has taken back must not arrive. In a transaction in which a statement failed this fails too.
            let keys: Vec<&str> = written.iter().map(|(note, _)| &*note.key).collect();
            let versions = repairs::versions(&mut tx, id, &keys).await?;
            written.retain(|(note, _)| versions.contains(&note.version));
        }
        if !tx.phase().writes(Side::Old) {
            for (note, json) in &written {
                let is_kept = store.put(&note.key, note.version, json.as_deref()).await;
                if !is_kept.map_err(MirrorError::Store)? {
                    return Err(MirrorError::Store("it has a later version of the row: try again".into()));
                }
                repairs::settle(&mut *tx, id, &note.key, note.version).await?;
            }
            return Ok(tx.commit().await?);
        }
        tx.commit().await?;
        let arrive = async {
            for (note, json) in &written {
                if store.put(&note.key, note.version, json.as_deref()).await? {
                    repairs::settle(mirror.plan.pool(), id, &note.key, note.version).await?;
                }
            }
            Ok::<_, StoreError>(())
        };
        match timeout(INLINE, arrive).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(%error, migration = mirror.migration.name(), "to be delivered later")
            }
            Err(_) => tracing::debug!(migration = mirror.migration.name(), "to be delivered later"),
        }
        Ok(())
    }

    /// Takes everything back.
    ///
    /// # Errors
    ///
    /// The database's.
    ///
    /// # Cancel safety
    ///
    /// Safe: it is taken back all the same.
    pub async fn rollback(self) -> Result<(), MirrorError> {
        Ok(self.tx.rollback().await?)
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
