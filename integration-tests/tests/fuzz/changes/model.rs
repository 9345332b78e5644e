//! What the rows must be: an independent statement of what each write and each constraint does.

use std::collections::{BTreeMap, BTreeSet};

use super::shape::{Action, ChangeShape};

/// A row of the table. Each column holds a number, written in the way of its type.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Row {
    pub(crate) note: Option<String>,
    pub(crate) a: Option<i64>,
    pub(crate) b: Option<i64>,
    pub(crate) c: Option<i64>,
    pub(crate) d: Option<i64>,
    pub(crate) legacy: Option<String>,
}

/// The rows of one writer, which no other one changes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Rows {
    pub(crate) rows: BTreeMap<i64, Row>,
    pub(crate) owners: BTreeSet<i64>,
}

/// What a statement does.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// `proposed`: the row of the insert, where an insert finds the row there already.
    Put {
        id: i64,
        row: Row,
        proposed: Option<Box<Row>>,
    },
    Delete {
        id: i64,
    },
    AddOwner {
        id: i64,
    },
    DropOwner {
        id: i64,
    },
    MoveOwner {
        from: i64,
        to: i64,
    },
}

/// A write that a constraint has to refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused;

impl Row {
    /// Whether `not null` or the check refuses the row.
    pub(crate) fn is_broken(&self, shape: &ChangeShape) -> bool {
        shape.not_null && self.a.is_none()
            || shape.check.is_some_and(|check| self.c.is_some_and(check.refuses))
    }
}

impl Rows {
    fn refers_to_nothing(&self, shape: &ChangeShape, row: &Row) -> bool {
        let is_there =
            |id: &i64| if shape.is_self { self.rows.contains_key(id) } else { self.owners.contains(id) };
        shape.reference.is_some() && row.d.is_some_and(|id| !is_there(&id))
    }

    /// The rows that violate a constraint of the change by themselves, and those with the value of an earlier one.
    pub(crate) fn broken(&self, shape: &ChangeShape) -> Vec<i64> {
        let mut seen = BTreeSet::new();
        let is_again =
            |row: &Row, seen: &mut BTreeSet<i64>| shape.unique && row.b.is_some_and(|b| !seen.insert(b));
        let broken = self.rows.iter().filter(|(_, row)| {
            let is_again = is_again(row, &mut seen);
            row.is_broken(shape) || self.refers_to_nothing(shape, row) || is_again
        });
        broken.map(|(id, _)| *id).collect()
    }

    /// What a trigger can see of a row that is written.
    pub(crate) fn is_seen_broken(&self, shape: &ChangeShape, row: &Row) -> bool {
        let is_checked = shape.reference.is_some_and(|reference| !reference.is_deferred);
        row.is_broken(shape) || is_checked && self.refers_to_nothing(shape, row)
    }

    /// The rows after a change. `in_force`: whether all constraints are.
    pub(crate) fn after(
        &self,
        shape: &ChangeShape,
        change: &Change,
        in_force: bool,
    ) -> Result<Self, Refused> {
        let mut rows = self.clone();
        match change {
            Change::Put { id, row, proposed } => {
                if in_force && proposed.as_ref().is_some_and(|row| row.is_broken(shape)) {
                    return Err(Refused);
                }
                rows.rows.insert(*id, row.clone());
            }
            Change::Delete { id } => {
                rows.rows.remove(id);
                if in_force && shape.is_self {
                    rows.release(shape, *id)?;
                }
            }
            Change::AddOwner { id } => {
                rows.owners.insert(*id);
            }
            Change::DropOwner { id } => {
                rows.owners.remove(id);
                if in_force && !shape.is_self {
                    rows.release(shape, *id)?;
                }
            }
            Change::MoveOwner { from, to } => {
                rows.owners.remove(from);
                rows.owners.insert(*to);
                let reference = shape.reference.filter(|_| in_force && !shape.is_self);
                for row in rows.rows.values_mut().filter(|row| row.d == Some(*from)) {
                    match reference.map(|reference| reference.on_update) {
                        Some(Action::Cascade) => row.d = Some(*to),
                        Some(Action::SetNull) => row.d = None,
                        Some(Action::Refuse) => return Err(Refused),
                        None => {}
                    }
                }
            }
        }
        if in_force && !rows.broken(shape).is_empty() { Err(Refused) } else { Ok(rows) }
    }

    /// What the foreign key does when the row that others refer to is deleted.
    fn release(&mut self, shape: &ChangeShape, id: i64) -> Result<(), Refused> {
        let Some(reference) = shape.reference else { return Ok(()) };
        let referring: Vec<i64> =
            self.rows.iter().filter(|(_, row)| row.d == Some(id)).map(|(id, _)| *id).collect();
        for one in referring {
            match reference.on_delete {
                Action::Refuse => return Err(Refused),
                Action::SetNull => {
                    if let Some(row) = self.rows.get_mut(&one) {
                        row.d = None;
                    }
                }
                Action::Cascade => {
                    if self.rows.remove(&one).is_some() && shape.is_self {
                        self.release(shape, one)?;
                    }
                }
            }
        }
        Ok(())
    }
}
