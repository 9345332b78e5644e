use std::fmt;

use super::Key;
use crate::migration::control::{Error, FencedTransaction, Migration, Pin, PinnedTx};
use crate::migration::phase::{Percent, Phase, Side};

/// Two repositories, one for each side, that look like one.
///
/// Which of them is written and read follows from the migration's phase: for a write from the transaction's
/// pin, for a read from a pin that lasts as long as the read. So no call mixes two phases, and the fleet does not
/// move on under it.
///
/// [`dual_write`](crate::dual_write) on a trait makes `DualWrite<O, N>` implement it:
///
/// ```
/// use cutover::migration::control::{Error, PinnedTx};
///
/// #[cutover::dual_write]
/// trait Statuses {
///     #[write]
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
/// # use cutover::migration::{control::Migration, data::DualWrite};
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
/// # What a pair of repositories has to keep to
///
/// Both sides get the same arguments, so whatever identifies a row comes in as an argument. A row that both
/// sides share (two columns of one table) is inserted before, in the same transaction, by code that belongs to
/// neither.
///
/// # Cost
///
/// Where one side is concerned a write is one call of it, a read one call between two counts on an atomic. There
/// is no allocation, and arguments are cloned only where both sides are written.
#[derive(Clone)]
pub struct DualWrite<O, N> {
    migration: Migration,
    old: O,
    new: N,
    seed: u64,
}

impl<O, N> DualWrite<O, N> {
    /// Joins the two sides of a migration.
    pub fn new(migration: Migration, old: O, new: N) -> Self {
        let seed = Key::of(migration.name()).seed();
        Self { migration, old, new, seed }
    }

    /// The migration that decides.
    pub fn migration(&self) -> &Migration {
        &self.migration
    }

    /// The sides that the transaction's phase writes.
    ///
    /// # Errors
    ///
    /// [`Error::OtherMigration`] for a transaction that was begun at another migration.
    #[inline]
    pub fn writes<T: FencedTransaction>(&self, tx: &PinnedTx<T>) -> Result<Writes<'_, O, N>, Error> {
        self.check(tx)?;
        let phase = tx.phase();
        Ok(match (phase.writes(Side::Old), phase.writes(Side::New)) {
            (true, true) => Writes::Both {
                old: &self.old,
                new: &self.new,
                returns: if phase.may_read(Side::Old) { Side::Old } else { Side::New },
            },
            (_, false) => Writes::Old(&self.old),
            (false, true) => Writes::New(&self.new),
        })
    }

    /// Pins a read and says which side it goes to.
    ///
    /// # Errors
    ///
    /// [`Error::NotInFleet`].
    #[inline]
    pub fn read(&self, key: Key) -> Result<Reading<'_, O, N>, Error> {
        let pin = self.migration.pin()?;
        Ok(Reading { reads: self.side(key, pin.phase(), pin.ramp()), pin })
    }

    /// The side that a read within a transaction goes to.
    ///
    /// # Errors
    ///
    /// [`Error::OtherMigration`] for a transaction that was begun at another migration.
    #[inline]
    pub fn read_in<T: FencedTransaction>(
        &self,
        tx: &PinnedTx<T>,
        key: Key,
    ) -> Result<Reads<'_, O, N>, Error> {
        self.check(tx)?;
        Ok(self.side(key, tx.phase(), tx.ramp()))
    }

    #[inline]
    fn side(&self, key: Key, phase: Phase, ramp: Percent) -> Reads<'_, O, N> {
        match key.side(phase, ramp, self.seed) {
            Side::Old => Reads::Old(&self.old),
            Side::New => Reads::New(&self.new),
        }
    }

    #[inline]
    fn check<T: FencedTransaction>(&self, tx: &PinnedTx<T>) -> Result<(), Error> {
        if tx.is_of(&self.migration) { Ok(()) } else { Err(Error::OtherMigration) }
    }
}

impl<O, N> fmt::Debug for DualWrite<O, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DualWrite").field("migration", &self.migration).finish_non_exhaustive()
    }
}

/// The sides that a write goes to. Where it is both, the old one comes first, so that two writers never lock
/// rows in opposite order, and an error of either side ends the transaction.
#[derive(Debug)]
pub enum Writes<'a, O, N> {
    /// The old side alone.
    Old(&'a O),
    /// Both.
    Both {
        /// To be written first.
        old: &'a O,
        /// To be written second.
        new: &'a N,
        /// Whose answer the caller gets: the side that every read of the phase comes from; while reads are
        /// split, the old one.
        returns: Side,
    },
    /// The new side alone.
    New(&'a N),
}

/// The side that a read goes to.
#[derive(Debug)]
pub enum Reads<'a, O, N> {
    /// The old one.
    Old(&'a O),
    /// The new one.
    New(&'a N),
}

/// A read under a pin: the migration waits for it.
#[must_use = "what was read counts only when it has passed `finish`"]
#[derive(Debug)]
pub struct Reading<'a, O, N> {
    pin: Pin<'a>,
    reads: Reads<'a, O, N>,
}

impl<'a, O, N> Reading<'a, O, N> {
    /// The side to read.
    #[inline]
    pub fn side(&self) -> &Reads<'a, O, N> {
        &self.reads
    }

    /// Ends the read and gives `value` back if this instance was in the fleet all the while.
    ///
    /// # Errors
    ///
    /// [`Error::NotInFleet`]: the value may be out of date.
    #[inline]
    pub fn finish<T, E: From<Error>>(self, value: T) -> Result<T, E> {
        if self.pin.holds() { Ok(value) } else { Err(Error::NotInFleet.into()) }
    }
}
