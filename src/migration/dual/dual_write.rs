//! The repositories of both sides behind the interface of one.

use std::fmt;

use super::reading::{Reading, Reads};
use crate::migration::phase::{Percent, Phase, Side};
use crate::migration::runtime::{Error, FencedTransaction, Key, Migration, PinnedTx};

/// Two repositories, one for each side, behind the interface of one.
///
/// The phase of the migration decides which of them a call writes or reads. A write takes the phase from the pin of its
/// transaction, a read from a pin that lasts as long as the read. So no call mixes two phases, and the fleet does not move
/// to the next phase during a call.
///
/// [`dual_write`](crate::dual_write) on a trait makes `DualWrite<O, N>` implement it:
///
/// ```
/// use cutover::migration::{Error, PinnedTx};
///
/// #[cutover::dual_write]
/// trait Statuses {
///     #[write(key = id)]
///     async fn set(&self, tx: &mut PinnedTx, id: i64, status: &str) -> Result<(), Error>;
///
///     #[read(key = id)]
///     async fn get(&self, id: i64) -> Result<Option<String>, Error>;
/// }
/// # struct Old;
/// # impl Statuses for Old {
/// #     async fn set(&self, _: &mut PinnedTx, _: i64, _: &str) -> Result<(), Error> { Ok(()) }
/// #     async fn get(&self, _: i64) -> Result<Option<String>, Error> { Ok(None) }
/// # }
/// # type New = Old;
/// # use cutover::migration::{DualWrite, Migration};
/// # async fn f(migration: Migration, pool: sqlx::PgPool) -> Result<(), Error> {
///
/// let statuses = DualWrite::new(migration.clone(), Old, /* the other repository */ Old);
/// let mut tx = migration.begin(&pool).await?;
/// statuses.set(&mut tx, 1, "paid").await?;
/// tx.commit().await?;
/// assert_eq!(statuses.get(1).await?.as_deref(), Some("paid"));
/// # Ok(())
/// # }
/// ```
///
/// Without a trait, closures do the same: [`DualWrite::write_with`], [`DualWrite::insert_with`],
/// [`DualWrite::read_with`] and [`DualWrite::read_in_with`].
///
/// # Guarantees for writes
///
/// - If both sides are written, the old side comes first. Two writers therefore never lock rows in opposite order.
/// - The caller gets the result of the side that the phase reads. While reads are split, that is the old side.
/// - A write that fails, or that is dropped before its end, makes its transaction impossible to commit
///   ([`Error::Unfinished`]), in every phase and even if the caller ignores the error. So neither an error nor a time
///   limit around the call can commit half of a write. Return a value, not an error, for outcomes after which the caller
///   may continue, such as a missing row.
/// - If another transaction commits a change of the row between the two statements, so that only the second one finds it, a trigger
///   of the migration's plan notices at commit: the row is repaired, or in `ramp` the commit fails with a serialization failure.
/// - Errors of the database driver are passed through. [`is_retryable`](crate::migration::is_retryable) recognises
///   deadlocks and serialization failures.
///
/// # Keys that the database generates
///
/// An insert gets its key as an `Option`. With `None` the database generates the key, and the key that the first side
/// returned is passed to the second side. See `#[insert]` at [`dual_write`](crate::dual_write) and
/// [`DualWrite::insert_with`]. From `retire` on the new side generates the keys. Let its default use the sequence of the
/// old side, or it generates keys that are in use.
///
/// # Both sides in one statement
///
/// Two columns of one row can be written by one statement. With `#[dual_write(at_once = Name)]` the attribute generates
/// another trait, `Name`, that has only the writes. [`DualWrite::at_once`] takes an implementation of it and uses it while
/// both sides are written.
///
/// # Cost
///
/// If one side is concerned, a write is one call of its repository, and a read is one call between two changes of an
/// atomic counter. Nothing is allocated. Arguments are cloned only if both sides are written.
#[derive(Clone)]
pub struct DualWrite<O, N, B = Separate> {
    migration: Migration,
    pub(super) old: O,
    pub(super) new: N,
    pub(super) at_once: Option<B>,
    /// The seed of [`Key::side`].
    seed: u64,
    /// Whether a failed write of the new side may be repaired later.
    pub(super) repairs: bool,
}

/// No combined writer is configured: each side is written by its own repository.
#[derive(Debug, Clone, Copy)]
pub enum Separate {}

impl<O, N> DualWrite<O, N> {
    /// Combines the repositories of the two sides of a migration.
    pub fn new(migration: Migration, old: O, new: N) -> Self {
        let seed = migration.seed();
        Self { migration, old, new, at_once: None, seed, repairs: false }
    }

    /// Uses `both` while both sides are written, instead of one repository after the other.
    ///
    /// It has to write everything that the two repositories would have written, and to return what the side
    /// [`tx.phase().answers()`](Phase::answers) would have returned.
    pub fn at_once<B>(self, both: B) -> DualWrite<O, N, B> {
        let Self { migration, old, new, seed, repairs, .. } = self;
        DualWrite { migration, old, new, at_once: Some(both), seed, repairs }
    }
}

impl<O, N, B> DualWrite<O, N, B> {
    /// Lets a transaction continue if the new side could not be written, while no instance reads that side: in `expand`,
    /// `backfill` and `verify`.
    ///
    /// The transaction rolls back to a savepoint before the new side's write and records the keys of the rows in the
    /// ledger. The migration does not enter `ramp` until all of these rows have been repaired, by the migration's plan or
    /// by [`DualWrite::repair_with`].
    ///
    /// In these cases both sides still have to succeed:
    ///
    /// - from `ramp` on, and while the move into `ramp` waits for standbys;
    /// - a write whose rows are unknown, and a write of both sides in one statement;
    /// - a deadlock or a serialization failure, after which the transaction has to be retried.
    ///
    /// Each write costs two more round trips and a subtransaction. Use it as long as writes of the new side may fail
    /// for reasons that are not known yet.
    pub fn repair_later(mut self) -> Self {
        self.repairs = true;
        self
    }

    /// The migration whose phase decides.
    pub fn migration(&self) -> &Migration {
        &self.migration
    }

    pub(crate) fn sides(&self) -> (&O, &N) {
        (&self.old, &self.new)
    }

    /// Pins a read and returns the side that it goes to.
    ///
    /// # Errors
    ///
    /// [`Error::NotInFleet`].
    #[inline]
    pub fn read(&self, key: Key) -> Result<Reading<'_, O, N>, Error> {
        self.read_by(|| key)
    }

    /// As [`DualWrite::read`]. The key's hash is needed only while reads are split, so it is computed only then.
    #[doc(hidden)]
    #[inline]
    pub fn read_by(&self, key: impl FnOnce() -> Key) -> Result<Reading<'_, O, N>, Error> {
        let pin = self.migration.pin()?;
        Ok(Reading::new(self.side(key, pin.phase(), pin.ramp()), pin))
    }

    /// The side that a read within a transaction goes to.
    ///
    /// # Errors
    ///
    /// [`Error::OtherMigration`] for a transaction that was not begun with this migration.
    #[inline]
    pub fn read_in<T: FencedTransaction>(
        &self,
        tx: &PinnedTx<T>,
        key: Key,
    ) -> Result<Reads<'_, O, N>, Error> {
        let pin = tx.pin_of(&self.migration)?;
        Ok(self.side(|| key, pin.phase(), pin.ramp()))
    }

    #[inline]
    fn side(&self, key: impl FnOnce() -> Key, phase: Phase, ramp: Percent) -> Reads<'_, O, N> {
        match Key::side_by(key, phase, ramp, self.seed) {
            Side::Old => Reads::Old(&self.old),
            Side::New => Reads::New(&self.new),
        }
    }
}

impl<O, N, B> fmt::Debug for DualWrite<O, N, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DualWrite").field("migration", &self.migration).finish_non_exhaustive()
    }
}
