use std::fmt;

use serde::Serialize;

use super::key::Key;
use super::rows::{Keyed, Rows};
use crate::migration::phase::{Percent, Phase, Side};
use crate::migration::runtime::{Error, FencedTransaction, Migration, Pin, PinnedTx, is_retryable};

/// Two repositories, one for each side, that look like one.
///
/// Which of them is written and read follows from the migration's phase: for a write from the transaction's
/// pin, for a read from a pin that lasts as long as the read. So no call mixes two phases, and the fleet does not
/// move on under it.
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
/// The same without a trait, by a closure for each side: [`DualWrite::write_with`],
/// [`DualWrite::insert_with`], [`DualWrite::read_with`] and [`DualWrite::read_in_with`].
///
/// # What a write may rely on
///
/// - Where both sides are written the old one comes first, so that two writers never lock rows in opposite order.
/// - The caller gets the answer of the side that the phase reads from; while reads are split, the old one's.
/// - A write that fails, or that is dropped before its end, spoils its transaction, in every phase: it can't be
///   committed any more ([`Error::Unfinished`]), also where the error was looked over. So neither an error nor a time
///   limit around the call can leave half of a write behind. What a caller may go on after (a row that isn't there,
///   say) is a value, not an error.
/// - The driver's errors come through as they are: [`is_retryable`](crate::migration::is_retryable) knows a
///   deadlock and a serialization failure.
///
/// # Keys that the database makes
///
/// An insert gets its key as an argument, an `Option`: with `None` the database makes it, and what the first side
/// returned is handed to the second one. See `#[insert]` at [`dual_write`](crate::dual_write) and
/// [`DualWrite::insert_with`]. From `retire` on the new side makes the keys: let its default be the old side's sequence, or
/// it begins with keys that are taken.
///
/// # Both sides in one statement
///
/// Two columns of one row are two statements where one would do. With `#[dual_write(at_once = Name)]` the attribute
/// makes another trait, `Name`, of the writes alone, and [`DualWrite::at_once`] takes an implementation of it, which
/// writes both sides while both are written.
///
/// # Cost
///
/// Where one side is concerned a write is one call of it, a read one call between two counts on an atomic. There
/// is no allocation, and arguments are cloned only where both sides are written.
#[derive(Clone)]
pub struct DualWrite<O, N, B = Separate> {
    migration: Migration,
    old: O,
    new: N,
    at_once: Option<B>,
    seed: u64,
    repairs: bool,
}

/// There is nothing that writes both sides at once: each is written by its own repository.
#[derive(Debug, Clone, Copy)]
pub enum Separate {}

impl<O, N> DualWrite<O, N> {
    /// Joins the two sides of a migration.
    pub fn new(migration: Migration, old: O, new: N) -> Self {
        let seed = Key::of(migration.name()).seed();
        Self { migration, old, new, at_once: None, seed, repairs: false }
    }

    /// Writes by `both` while both sides are written, instead of by one after the other.
    ///
    /// It has to write all that the two would have written, and to return what the side
    /// [`tx.phase().answers()`](Phase::answers) would have returned.
    pub fn at_once<B>(self, both: B) -> DualWrite<O, N, B> {
        let Self { migration, old, new, seed, repairs, .. } = self;
        DualWrite { migration, old, new, at_once: Some(both), seed, repairs }
    }
}

impl<O, N, B> DualWrite<O, N, B> {
    /// Lets a transaction go on when the new side could not be written, as long as nobody reads that side: in
    /// `expand`, `backfill` and `verify`.
    ///
    /// What the new side's repository did is undone to a savepoint, and the keys of the write's rows are noted in the
    /// ledger, in the same transaction. `ramp` is not entered before all of them have been repaired: by the
    /// migration's plan where its mapping is SQL, else by [`DualWrite::repair_with`]. From `ramp` on, and while the move into
    /// it waits for standbys, both sides have to succeed. So does every write whose rows are unknown, every write of both sides at once, and a transaction that
    /// lost a deadlock or could not be serialized: it is to be begun again.
    ///
    /// It costs two round trips per write, and a subtransaction: keep it for when the new side is young.
    pub fn repair_later(mut self) -> Self {
        self.repairs = true;
        self
    }

    /// The migration that decides.
    pub fn migration(&self) -> &Migration {
        &self.migration
    }

    pub(crate) fn sides(&self) -> (&O, &N) {
        (&self.old, &self.new)
    }

    /// Writes by a closure for each side, on those sides that the transaction's phase writes.
    ///
    /// ```
    /// use cutover::migration::{Error, Migration, PinnedTx};
    /// use cutover::migration::{DualWrite, Rows};
    ///
    /// struct OldColumn;
    /// # impl OldColumn { async fn set(&self, tx: &mut PinnedTx, id: i64, s: &str) -> Result<bool, Error> { Ok(true) } }
    /// struct NewColumn;
    /// # impl NewColumn { async fn set(&self, tx: &mut PinnedTx, id: i64, s: &str) -> Result<bool, Error> { Ok(true) } }
    ///
    /// # async fn f(sides: DualWrite<OldColumn, NewColumn>, pool: sqlx::PgPool, id: i64) -> Result<(), Error> {
    /// let mut tx = sides.migration().begin(&pool).await?;
    /// let is_there = sides
    ///     .write_with(
    ///         &mut tx,
    ///         Rows::one(&id),
    ///         async |old, tx| old.set(tx, id, "PAID").await,
    ///         async |new, tx| new.set(tx, id, "paid").await,
    ///     )
    ///     .await?;
    /// tx.commit().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The closures' own, [`Error::OtherMigration`] for a transaction that was begun at another migration. The
    /// transaction can't be committed any more.
    ///
    /// # Cancel safety
    ///
    /// Safe: a transaction in which it was dropped can't be committed.
    pub async fn write_with<T, K, R, E>(
        &self,
        tx: &mut PinnedTx<T>,
        rows: Rows<'_, K>,
        old: impl AsyncFnOnce(&O, &mut PinnedTx<T>) -> Result<R, E>,
        new: impl AsyncFnOnce(&N, &mut PinnedTx<T>) -> Result<R, E>,
    ) -> Result<R, E>
    where
        T: FencedTransaction,
        K: Serialize + ?Sized,
        E: From<Error> + std::error::Error + 'static,
    {
        let value = match Self::begin_write(self, tx)? {
            Writes::Old(side) => old(side, tx).await?,
            Writes::New(side) => new(side, tx).await?,
            Writes::Both { old: first, new: second, .. } => {
                let from_old = old(first, tx).await?;
                let guard = Self::guard(self, tx, rows).await?;
                let attempt = new(second, tx).await;
                match Self::settle(self, tx, guard, attempt).await? {
                    Some(from_new) if tx.phase().answers() == Side::New => from_new,
                    _ => from_old,
                }
            }
        };
        Ok(Self::end_write(self, tx, value))
    }

    /// Like [`DualWrite::write_with`], with a third closure that writes both sides in one statement, for while both are
    /// written. It returns what the side [`tx.phase().answers()`](Phase::answers) would have returned.
    ///
    /// # Errors
    ///
    /// As [`DualWrite::write_with`].
    ///
    /// # Cancel safety
    ///
    /// As [`DualWrite::write_with`].
    pub async fn write_at_once<T: FencedTransaction, R, E: From<Error>>(
        &self,
        tx: &mut PinnedTx<T>,
        old: impl AsyncFnOnce(&O, &mut PinnedTx<T>) -> Result<R, E>,
        new: impl AsyncFnOnce(&N, &mut PinnedTx<T>) -> Result<R, E>,
        both: impl AsyncFnOnce(&O, &N, &mut PinnedTx<T>) -> Result<R, E>,
    ) -> Result<R, E> {
        let value = match Self::begin_write(self, tx)? {
            Writes::Old(side) => old(side, tx).await?,
            Writes::New(side) => new(side, tx).await?,
            Writes::Both { old, new, .. } => both(old, new, tx).await?,
        };
        Ok(Self::end_write(self, tx, value))
    }

    /// Inserts a row by a closure for each side, under the same key on both.
    ///
    /// With a key of `None` the database makes it: the closure of the first side gets `None` and returns the key, or
    /// something [`Keyed`] by it, and that of the second side gets `Some` of it.
    ///
    /// ```
    /// use cutover::migration::{Error, PinnedTx};
    /// use cutover::migration::DualWrite;
    /// use sqlx::query_scalar;
    ///
    /// # async fn f(sides: DualWrite<(), ()>, tx: &mut PinnedTx, name: &str) -> Result<i64, Error> {
    /// let id: i64 = sides
    ///     .insert_with(
    ///         tx,
    ///         None,
    ///         async |_, tx, id: Option<i64>| {
    ///             let insert = "insert into customers (id, name) \
    ///                 values (coalesce($1, nextval('customer_ids')), $2) returning id";
    ///             Ok::<_, Error>(query_scalar(insert).bind(id).bind(name).fetch_one(&mut **tx).await?)
    ///         },
    ///         async |_, tx, id| {
    ///             let insert = "insert into people (id, name) \
    ///                 values (coalesce($1, nextval('customer_ids')), $2) returning id";
    ///             Ok(query_scalar(insert).bind(id).bind(name).fetch_one(&mut **tx).await?)
    ///         },
    ///     )
    ///     .await?;
    /// # Ok(id)
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`DualWrite::write_with`], and [`Error::KeysDiffer`] when a side returns another key than it was given.
    ///
    /// # Cancel safety
    ///
    /// As [`DualWrite::write_with`].
    pub async fn insert_with<T, K, R, E>(
        &self,
        tx: &mut PinnedTx<T>,
        key: Option<K>,
        old: impl AsyncFnOnce(&O, &mut PinnedTx<T>, Option<K>) -> Result<R, E>,
        new: impl AsyncFnOnce(&N, &mut PinnedTx<T>, Option<K>) -> Result<R, E>,
    ) -> Result<R, E>
    where
        T: FencedTransaction,
        K: Clone + PartialEq + Serialize,
        R: Keyed<K>,
        E: From<Error> + std::error::Error + 'static,
    {
        let value = match Self::begin_write(self, tx)? {
            Writes::Old(side) => old(side, tx, key).await?,
            Writes::New(side) => new(side, tx, key).await?,
            Writes::Both { old: first, new: second, .. } => {
                let from_old = old(first, tx, key.clone()).await?;
                let made = made(key, &from_old)?;
                let guard = Self::guard(self, tx, Rows::one(&made)).await?;
                let attempt = new(second, tx, Some(made.clone())).await;
                match Self::settle(self, tx, guard, attempt).await? {
                    Some(from_new) => {
                        same(&made, &from_new)?;
                        if tx.phase().answers() == Side::New { from_new } else { from_old }
                    }
                    None => from_old,
                }
            }
        };
        Ok(Self::end_write(self, tx, value))
    }

    /// Reads by a closure for each side, from the side that this key is read from, under a pin.
    ///
    /// # Errors
    ///
    /// The closures' own, [`Error::NotInFleet`].
    ///
    /// # Cancel safety
    ///
    /// Safe: the pin is given back.
    pub async fn read_with<R, E: From<Error>>(
        &self,
        key: Key,
        old: impl AsyncFnOnce(&O) -> Result<R, E>,
        new: impl AsyncFnOnce(&N) -> Result<R, E>,
    ) -> Result<R, E> {
        let reading = self.read(key)?;
        let value = match reading.side() {
            Reads::Old(side) => old(side).await?,
            Reads::New(side) => new(side).await?,
        };
        reading.finish(value)
    }

    /// Reads by a closure for each side within a transaction, from the side that its phase reads this key from.
    ///
    /// # Errors
    ///
    /// The closures' own, [`Error::OtherMigration`].
    ///
    /// # Cancel safety
    ///
    /// Safe: reads only.
    pub async fn read_in_with<T: FencedTransaction, R, E: From<Error>>(
        &self,
        tx: &mut PinnedTx<T>,
        key: Key,
        old: impl AsyncFnOnce(&O, &mut PinnedTx<T>) -> Result<R, E>,
        new: impl AsyncFnOnce(&N, &mut PinnedTx<T>) -> Result<R, E>,
    ) -> Result<R, E> {
        match self.read_in(tx, key)? {
            Reads::Old(side) => old(side, tx).await,
            Reads::New(side) => new(side, tx).await,
        }
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

/// What `#[dual_write]` and the closures are made of (no methods, so that they hide none of a repository's): begin, the sides' calls between `guard` and `settle`, end.
#[doc(hidden)]
impl<O, N, B> DualWrite<O, N, B> {
    /// Where the write goes. From here to `end_write` the transaction can't be committed.
    #[inline]
    pub fn begin_write<'a, T: FencedTransaction>(
        this: &'a Self,
        tx: &mut PinnedTx<T>,
    ) -> Result<Writes<'a, O, N, B>, Error> {
        this.check(tx)?;
        tx.write_begins();
        let phase = tx.phase();
        Ok(match (phase.writes(Side::Old), phase.writes(Side::New)) {
            (true, true) => Writes::Both { old: &this.old, new: &this.new, at_once: this.at_once.as_ref() },
            (_, false) => Writes::Old(&this.old),
            (false, true) => Writes::New(&this.new),
        })
    }

    /// Makes what comes next undoable, where a failure of the new side may be repaired later.
    #[inline]
    pub fn guard<T: FencedTransaction, K: Serialize + ?Sized>(
        this: &Self,
        tx: &mut PinnedTx<T>,
        rows: Rows<'_, K>,
    ) -> impl Future<Output = Result<Guard, Error>> {
        let wanted = this.repairs && tx.phase() < Phase::Ramp;
        // Here and not in the future: what the caller has for keys is not carried across an await.
        let keys = if wanted { rows.to_json() } else { None };
        async move {
            if keys.is_some() {
                tx.ask("savepoint cutover_new_side", &[]).await?;
            }
            Ok(Guard(keys))
        }
    }

    /// What the new side's write came to; `None` when it has failed and is noted for repair.
    #[inline]
    pub async fn settle<T: FencedTransaction, R, E>(
        this: &Self,
        tx: &mut PinnedTx<T>,
        guard: Guard,
        attempt: Result<R, E>,
    ) -> Result<Option<R>, E>
    where
        E: From<Error> + std::error::Error + 'static,
    {
        let Guard(Some(keys)) = guard else { return attempt.map(Some) };
        match attempt {
            Ok(value) => {
                tx.ask("release savepoint cutover_new_side", &[]).await?;
                Ok(Some(value))
            }
            // To be begun again as a whole.
            Err(error) if is_retryable(&error) => Err(error),
            Err(error) => {
                let text = error.to_string();
                match this.note(tx, &keys, &text).await {
                    Ok(true) => Ok(None),
                    Ok(false) | Err(_) => Err(error),
                }
            }
        }
    }

    /// Ends what `begin_write` began.
    #[inline]
    pub fn end_write<T: FencedTransaction, R>(_: &Self, tx: &mut PinnedTx<T>, value: R) -> R {
        tx.write_ended();
        value
    }
}

/// The key under which the first side inserted: the given one, or the one that the database made.
#[doc(hidden)]
pub fn made<K: PartialEq, R: Keyed<K>>(given: Option<K>, inserted: &R) -> Result<K, Error> {
    let made = inserted.key();
    if given.is_none_or(|given| given == made) { Ok(made) } else { Err(Error::KeysDiffer) }
}

/// Whether the second side inserted under the key that it was given.
#[doc(hidden)]
pub fn same<K: PartialEq, R: Keyed<K>>(made: &K, inserted: &R) -> Result<(), Error> {
    if inserted.key() == *made { Ok(()) } else { Err(Error::KeysDiffer) }
}

/// Keys of the rows whose new side is written behind a savepoint.
#[doc(hidden)]
#[derive(Debug)]
pub struct Guard(Option<serde_json::Value>);

impl<O, N, B> fmt::Debug for DualWrite<O, N, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DualWrite").field("migration", &self.migration).finish_non_exhaustive()
    }
}

/// The sides that a write goes to.
#[doc(hidden)]
#[derive(Debug)]
pub enum Writes<'a, O, N, B> {
    /// The old side alone.
    Old(&'a O),
    /// Both, the old one first, or at once where something can.
    Both { old: &'a O, new: &'a N, at_once: Option<&'a B> },
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
