//! Which columns a statement names where the guard trigger mirrors the writes of the service.
//!
//! # Why no value is lost
//!
//! A pinned write names the columns of the side that has authority at the phase of its *pin*: the old side up to `ramp`, the
//! new side from `switch` on. The fence leaves that phase in the transaction, and the guard trigger maps the write to the
//! other side by it, in the same statement. The phase that the ledger has at that moment plays no part. Two adjacent epochs
//! are in use at a time, in either direction:
//!
//! | epochs in use | what is written | why no value is lost |
//! |---|---|---|
//! | `off` and `expand` | both write old; only `expand` mirrors | old has every value. The copy begins when `off` is drained |
//! | two of `expand` to `ramp` | both write old and mirror it | the same rule on both sides of the move |
//! | `ramp` and `switch` | one writes old, the other one new; both mirror | every statement leaves both columns of its row equal, and the row lock orders the statements. So each finds the value of the one before it in its own column |
//! | `switch` and `retire` | both write new; only `switch` mirrors | new has every value, and both read it. Old counts as incomplete from the move to `retire` on, and the way back to `ramp` needs the reverse backfill, which begins when `retire` is drained |
//! | `retire` and `contract` | both write new | old is no longer read |
//!
//! With the ledger's phase instead, an insert at `ramp` would be judged as one at `switch` as soon as the move has committed.
//! The new column that it left out would then win over the old value that it wrote.
//!
//! A mapping that fails fails the write, in every phase from `expand` to `switch`, so no pinned write leaves a side behind.

use std::fmt;
use std::sync::Arc;

use super::key::Key;
use crate::migration::phase::{Percent, Phase, Side};

/// The columns of both sides, quoted.
#[derive(Debug)]
pub struct MirroredColumns {
    old: Columns,
    new: Columns,
}

#[derive(Debug)]
struct Columns {
    names: Vec<String>,
    /// The names, separated by commas.
    list: String,
}

impl MirroredColumns {
    pub(crate) fn new(old: Vec<String>, new: Vec<String>) -> Self {
        let columns = |names: Vec<String>| Columns { list: names.join(", "), names };
        Self { old: columns(old), new: columns(new) }
    }
}

/// The columns of one side of a migration, for a statement at one phase.
/// [`Migration::columns`](super::Migration::columns) makes it.
///
/// It prints as the quoted names, separated by commas, so it can stand in the text of a statement. It first names the side
/// that has authority: the old one up to `ramp`, the new one from `switch` on. That side is complete and current in every
/// phase, so a statement can name it anywhere: in `set`, `where`, `order by`, `returning`, joins, aggregates and `with`.
///
/// A write always names the side that has authority. A read can take part in the percentage of `ramp` with
/// [`SideColumns::for_key`].
///
/// The two sides may represent a value differently (`PAID` and `paid`, text and number). [`SideColumns::is_new`] tells which
/// representation a statement writes or reads.
///
/// # Static SQL
///
/// A statement whose text is fixed, as for `sqlx::query!`, names both columns and takes [`SideColumns::is_new`] as a
/// parameter. `case when $1 then new_status else old_status end` selects a value. A `case` in a condition cannot use an
/// index; write one condition for each column:
///
/// ```sql
/// select id from orders where ($1 and new_status = $2) or (not $1 and old_status = $2)
/// ```
///
/// Both columns exist from `expand` to `retire`. A build with such statements runs no other phase, unless migration files add
/// the column before it starts; see "Both columns in static SQL" in the guide.
#[derive(Debug, Clone)]
pub struct SideColumns {
    columns: Arc<MirroredColumns>,
    side: Side,
    phase: Phase,
    ramp: Percent,
    seed: u64,
}

impl SideColumns {
    pub(super) fn new(columns: Arc<MirroredColumns>, phase: Phase, ramp: Percent, seed: u64) -> Self {
        Self { columns, side: phase.answers(), phase, ramp, seed }
    }

    /// The columns that a read of this key names.
    ///
    /// In `ramp` a percentage of the keys is read from the new side, and a key always from the same side. In all other phases
    /// the side that has authority is read.
    ///
    /// A statement reads one side as a whole. If it reads many rows, as a list does, use the key of what owns them, for
    /// example the customer or the tenant, so that the same list always comes from the same side. With [`Key::NONE`] it comes
    /// from the old side until the percentage is 100.
    pub fn for_key(&self, key: Key) -> Self {
        Self { side: key.side(self.phase, self.ramp, self.seed), ..self.clone() }
    }

    /// The side of these columns.
    pub fn side(&self) -> Side {
        self.side
    }

    /// Whether these are the columns of the new side. It is the parameter of statements that name both sides.
    pub fn is_new(&self) -> bool {
        self.side == Side::New
    }

    /// The columns, each quoted, in the order in which the plan names them.
    pub fn names(&self) -> &[String] {
        &self.of_side().names
    }

    fn of_side(&self) -> &Columns {
        match self.side {
            Side::Old => &self.columns.old,
            Side::New => &self.columns.new,
        }
    }
}

impl fmt::Display for SideColumns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.of_side().list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_names_the_side_with_authority() {
        let columns =
            Arc::new(MirroredColumns::new(vec!["\"a\"".into()], vec!["\"b\"".into(), "\"c\"".into()]));
        for phase in Phase::ALL {
            let half = Percent::new(50).unwrap_or(Percent::ALL);
            let names = SideColumns::new(columns.clone(), phase, half, 7);
            let expected = if phase >= Phase::Switch { "\"b\", \"c\"" } else { "\"a\"" };
            assert_eq!(names.to_string(), expected, "{phase}");
            let read: std::collections::BTreeSet<bool> =
                (0..100_i64).map(|id| names.for_key(Key::of(&id)).is_new()).collect();
            assert_eq!(read.len(), if phase == Phase::Ramp { 2 } else { 1 }, "{phase}");
            assert!(read.contains(&names.is_new()), "{phase}");
        }
    }
}
