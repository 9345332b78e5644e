//! Writes and reads with a closure for each side.

use serde::Serialize;

use super::dual_write::DualWrite;
use super::reading::Reads;
use super::repository_error::RepositoryError;
use super::rows::{Keyed, Rows};
use super::write_steps::{Writes, check_same_key, explain_duplicate, inserted_key};
use crate::migration::phase::Side;
use crate::migration::runtime::{Error, FencedTransaction, Key, PinnedTx, SideCall};

impl<O, N, B> DualWrite<O, N, B> {
    /// Writes with a closure for each side, on the sides that the transaction's phase writes.
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
    /// The errors of the closures, and [`Error::OtherMigration`] for a transaction that was not begun with this migration.
    /// The transaction cannot be committed afterwards.
    ///
    /// # Cancel safety
    ///
    /// Safe: if the write is dropped before its end, its transaction cannot be committed.
    pub async fn write_with<T, K, R, E, Kind>(
        &self,
        tx: &mut PinnedTx<T>,
        rows: Rows<'_, K>,
        old: impl AsyncFnOnce(&O, &mut PinnedTx<T>) -> Result<R, E>,
        new: impl AsyncFnOnce(&N, &mut PinnedTx<T>) -> Result<R, E>,
    ) -> Result<R, E>
    where
        T: FencedTransaction,
        K: Serialize + ?Sized,
        E: From<Error> + RepositoryError<Kind>,
    {
        let value = match Self::begin_write(self, tx)? {
            Writes::Old(side) => Self::timer(self, SideCall::WriteOld).ended(old(side, tx).await)?,
            Writes::New(side) => Self::timer(self, SideCall::WriteNew).ended(new(side, tx).await)?,
            Writes::Both { old: first, new: second, .. } => {
                let from_old = Self::timer(self, SideCall::WriteOld).ended(old(first, tx).await)?;
                let guard = Self::protect_new_side(self, tx, rows).await?;
                let attempt = Self::timer(self, SideCall::WriteNew).ended(new(second, tx).await);
                match Self::finish_new_side(self, tx, guard, attempt).await? {
                    Some(from_new) if Self::answers(self, tx)? == Side::New => from_new,
                    _ => from_old,
                }
            }
        };
        Ok(Self::end_write(self, tx, value))
    }

    /// Like [`DualWrite::write_with`], with a third closure that writes both sides in one statement while both are
    /// written. It has to return what the side [`tx.phase().answers()`](crate::migration::Phase::answers) would have
    /// returned.
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
            Writes::Old(side) => Self::timer(self, SideCall::WriteOld).ended(old(side, tx).await)?,
            Writes::New(side) => Self::timer(self, SideCall::WriteNew).ended(new(side, tx).await)?,
            Writes::Both { old, new, .. } => {
                Self::timer(self, SideCall::WriteBoth).ended(both(old, new, tx).await)?
            }
        };
        Ok(Self::end_write(self, tx, value))
    }

    /// Inserts a row with a closure for each side, under the same key on both sides.
    ///
    /// If `key` is `None`, the database generates it. The closure of the first side then gets `None` and returns the key,
    /// or something [`Keyed`] by it. The closure of the second side gets `Some` of that key.
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
    /// As [`DualWrite::write_with`], and [`Error::KeysDiffer`] if a side returns another key than it was given, and
    /// [`Error::InsertedTwice`] if the second side inserts the row that the first side has just inserted.
    ///
    /// # Cancel safety
    ///
    /// As [`DualWrite::write_with`].
    pub async fn insert_with<T, K, R, E, Kind>(
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
        E: From<Error> + RepositoryError<Kind>,
    {
        let value = match Self::begin_write(self, tx)? {
            Writes::Old(side) => Self::timer(self, SideCall::WriteOld).ended(old(side, tx, key).await)?,
            Writes::New(side) => Self::timer(self, SideCall::WriteNew).ended(new(side, tx, key).await)?,
            Writes::Both { old: first, new: second, .. } => {
                let from_old =
                    Self::timer(self, SideCall::WriteOld).ended(old(first, tx, key.clone()).await)?;
                let key = inserted_key(key, &from_old)?;
                let guard = Self::protect_new_side(self, tx, Rows::one(&key)).await?;
                let attempt = explain_duplicate(
                    &key,
                    Self::timer(self, SideCall::WriteNew).ended(new(second, tx, Some(key.clone())).await),
                );
                match Self::finish_new_side(self, tx, guard, attempt).await? {
                    Some(from_new) => {
                        check_same_key(&key, &from_new)?;
                        if Self::answers(self, tx)? == Side::New { from_new } else { from_old }
                    }
                    None => from_old,
                }
            }
        };
        Ok(Self::end_write(self, tx, value))
    }

    /// Reads under a pin, with a closure for each side, from the side from which this key is read.
    ///
    /// # Errors
    ///
    /// The errors of the closures, and [`Error::NotInFleet`].
    ///
    /// # Cancel safety
    ///
    /// Safe: the pin is released.
    pub async fn read_with<R, E: From<Error>>(
        &self,
        key: Key,
        old: impl AsyncFnOnce(&O) -> Result<R, E>,
        new: impl AsyncFnOnce(&N) -> Result<R, E>,
    ) -> Result<R, E> {
        let reading = self.read(key)?;
        let value = match reading.side() {
            Reads::Old(side) => Self::timer(self, SideCall::ReadOld).ended(old(side).await)?,
            Reads::New(side) => Self::timer(self, SideCall::ReadNew).ended(new(side).await)?,
        };
        reading.finish(value)
    }

    /// Reads within a transaction, with a closure for each side, from the side from which its phase reads this key.
    ///
    /// # Errors
    ///
    /// The errors of the closures, and [`Error::OtherMigration`].
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn read_in_with<T: FencedTransaction, R, E: From<Error>>(
        &self,
        tx: &mut PinnedTx<T>,
        key: Key,
        old: impl AsyncFnOnce(&O, &mut PinnedTx<T>) -> Result<R, E>,
        new: impl AsyncFnOnce(&N, &mut PinnedTx<T>) -> Result<R, E>,
    ) -> Result<R, E> {
        match self.read_in(tx, key)? {
            Reads::Old(side) => Self::timer(self, SideCall::ReadOld).ended(old(side, tx).await),
            Reads::New(side) => Self::timer(self, SideCall::ReadNew).ended(new(side, tx).await),
        }
    }
}
