//! The steps of a write on both sides.

use serde::Serialize;
use serde_json::Value;

use super::dual_write::DualWrite;
use super::repository_error::RepositoryError;
use super::rows::{Keyed, Rows};
use crate::migration::phase::{Phase, Side};
use crate::migration::runtime::{
    CallTimer, Duplicate, Error, FencedTransaction, PinnedTx, SideCall, duplicate_key, is_retryable,
};

/// The steps of a write, for `#[dual_write]` and for the closures. They are no methods, so they hide no method of a
/// repository. The order is: `begin_write`, the old side's call, `protect_new_side`, the new side's call,
/// `finish_new_side`, `end_write`.
#[doc(hidden)]
impl<O, N, B> DualWrite<O, N, B> {
    /// Returns the sides to write. The transaction cannot be committed until `end_write`.
    #[inline]
    pub fn begin_write<'a, T: FencedTransaction>(
        this: &'a Self,
        tx: &mut PinnedTx<T>,
    ) -> Result<Writes<'a, O, N, B>, Error> {
        let phase = tx.write_begins(this.migration())?;
        Ok(match (phase.writes(Side::Old), phase.writes(Side::New)) {
            (true, true) => Writes::Both { old: &this.old, new: &this.new, at_once: this.at_once.as_ref() },
            (_, false) => Writes::Old(&this.old),
            (false, true) => Writes::New(&this.new),
        })
    }

    /// Measures a call of a repository.
    #[inline]
    pub fn timer(this: &Self, call: SideCall) -> CallTimer<'_> {
        let migration = this.migration();
        CallTimer::start(migration.sides(), migration.current().map(|(_, phase)| phase), call)
    }

    /// Sets a savepoint if a failure of the new side may be repaired later.
    #[inline]
    pub fn protect_new_side<T: FencedTransaction, K: Serialize + ?Sized>(
        this: &Self,
        tx: &mut PinnedTx<T>,
        rows: Rows<'_, K>,
    ) -> impl Future<Output = Result<Guard, Error>> {
        let may_fail = this.repairs && tx.phase_of(this.migration()).is_ok_and(|phase| phase < Phase::Ramp);
        // Outside of the future, so that the caller's keys do not have to live across an await.
        let keys = if may_fail { rows.to_json() } else { None };
        async move {
            if keys.is_some() {
                tx.ask("savepoint cutover_new_side", &[]).await?;
            }
            Ok(Guard(keys))
        }
    }

    /// The result of the new side's write; `None` if it failed and its rows are recorded for repair.
    #[inline]
    pub async fn finish_new_side<T: FencedTransaction, R, E, Kind>(
        this: &Self,
        tx: &mut PinnedTx<T>,
        guard: Guard,
        attempt: Result<R, E>,
    ) -> Result<Option<R>, E>
    where
        E: From<Error> + RepositoryError<Kind>,
    {
        let Guard(Some(keys)) = guard else { return attempt.map(Some) };
        match attempt {
            Ok(value) => {
                tx.ask("release savepoint cutover_new_side", &[]).await?;
                Ok(Some(value))
            }
            // The whole transaction has to be retried.
            Err(error) if is_retryable(error.as_error()) => Err(error),
            Err(error) => {
                let text = error.as_error().to_string();
                match this.record_repairs(tx, &keys, &text).await {
                    Ok(true) => Ok(None),
                    Ok(false) | Err(_) => Err(error),
                }
            }
        }
    }

    /// The side whose result the caller gets.
    #[inline]
    pub fn answers<T: FencedTransaction>(this: &Self, tx: &PinnedTx<T>) -> Result<Side, Error> {
        Ok(tx.phase_of(this.migration())?.answers())
    }

    /// Allows the commit that `begin_write` forbade.
    #[inline]
    pub fn end_write<T: FencedTransaction, R>(_: &Self, tx: &mut PinnedTx<T>, value: R) -> R {
        tx.write_ended();
        value
    }
}

/// The key under which the first side inserted the row: the given key, or the one that the database generated.
#[doc(hidden)]
pub fn inserted_key<K: PartialEq, R: Keyed<K>>(given: Option<K>, inserted: &R) -> Result<K, Error> {
    let key = inserted.key();
    if given.is_none_or(|given| given == key) { Ok(key) } else { Err(Error::KeysDiffer) }
}

/// Checks that the second side inserted the row under the key that it was given.
#[doc(hidden)]
pub fn check_same_key<K: PartialEq, R: Keyed<K>>(key: &K, inserted: &R) -> Result<(), Error> {
    if inserted.key() == *key { Ok(()) } else { Err(Error::KeysDiffer) }
}

/// Explains the database's error if the second side of an insert inserted the row that the first side had just inserted.
#[doc(hidden)]
pub fn explain_duplicate<K: Serialize, R, E, Kind>(key: &K, attempt: Result<R, E>) -> Result<R, E>
where
    E: From<Error> + RepositoryError<Kind>,
{
    let Err(error) = attempt else { return attempt };
    let duplicate = duplicate_key(error.as_error());
    match duplicate.filter(|duplicate| duplicate.values == text_of(key)) {
        Some(Duplicate { constraint, values }) => {
            Err(Error::InsertedTwice { key: values, constraint }.into())
        }
        None => Err(error),
    }
}

/// A key as Postgres prints it in the detail of a unique violation.
fn text_of(key: &impl Serialize) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match serde_json::to_value(key) {
        Ok(Value::Array(columns)) => columns.iter().map(text).collect::<Vec<_>>().join(", "),
        Ok(value) => text(&value),
        Err(_) => String::new(),
    }
}

/// The keys of the rows whose new side is written behind a savepoint; `None` if there is no savepoint.
#[doc(hidden)]
#[derive(Debug)]
pub struct Guard(Option<serde_json::Value>);

/// The sides to write.
#[doc(hidden)]
#[derive(Debug)]
pub enum Writes<'a, O, N, B> {
    /// Only the old side.
    Old(&'a O),
    /// Both, the old side first, or both by the combined writer if there is one.
    Both { old: &'a O, new: &'a N, at_once: Option<&'a B> },
    /// Only the new side.
    New(&'a N),
}
