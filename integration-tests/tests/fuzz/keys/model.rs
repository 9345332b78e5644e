//! What the rows of all tables must be: an independent statement of what each write and each foreign key does.

use std::collections::{BTreeMap, BTreeSet};

use super::shape::{Action, KeyShape, Referring};

/// The key that always exists, which is the default of columns that refer to a key.
pub(crate) const ROOT: i64 = 1;

/// A row of `subject`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) note: String,
    pub(crate) parent: Option<i64>,
}

/// A row of a table that refers to the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) note: String,
    pub(crate) node: Option<i64>,
}

/// The rows of one writer, which no other one changes. `fresh`: the rows whose second column has been set by a trigger.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rows {
    pub(crate) nodes: BTreeMap<i64, Node>,
    /// By the number of the table and the row's own key.
    pub(crate) lines: BTreeMap<(usize, i64), Line>,
    /// Rows that were written since the second column exists: the table, as in [`KeyShape::referring`] but 0 for the key
    /// itself, and the row.
    pub(crate) fresh: BTreeSet<(String, i64)>,
}

/// A write that a foreign key, or `not null`, has to refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused;

impl Rows {
    /// Deletes a row of the key's table, with everything that follows from it.
    pub(crate) fn delete(&mut self, shape: &KeyShape, id: i64) -> Result<(), Refused> {
        self.nodes.remove(&id);
        if let Some(parent) = &shape.parent {
            let children: Vec<i64> =
                self.nodes.iter().filter(|(_, node)| node.parent == Some(id)).map(|(id, _)| *id).collect();
            for child in children {
                match after(parent, parent.on_delete, None)? {
                    Left::Row(value) => self.set_parent(child, value),
                    Left::Nothing => self.delete(shape, child)?,
                }
            }
        }
        for (key, one) in self.lines_of(shape, id) {
            match after(one, one.on_delete, None)? {
                Left::Row(value) => self.set_node(key, value),
                Left::Nothing => {
                    self.lines.remove(&key);
                }
            }
        }
        Ok(())
    }

    /// Gives a row another key, with everything that follows from it.
    pub(crate) fn move_key(&mut self, shape: &KeyShape, from: i64, to: i64) -> Result<(), Refused> {
        let Some(node) = self.nodes.remove(&from) else { return Ok(()) };
        self.nodes.insert(to, node);
        if let Some(parent) = &shape.parent {
            let children: Vec<i64> =
                self.nodes.iter().filter(|(_, node)| node.parent == Some(from)).map(|(id, _)| *id).collect();
            for child in children {
                if let Left::Row(value) = after(parent, parent.on_update, Some(to))? {
                    self.set_parent(child, value);
                }
            }
        }
        for (key, one) in self.lines_of(shape, from) {
            if let Left::Row(value) = after(one, one.on_update, Some(to))? {
                self.set_node(key, value);
            }
        }
        Ok(())
    }

    fn lines_of<'s>(&self, shape: &'s KeyShape, id: i64) -> Vec<((usize, i64), &'s Referring)> {
        let all = self.lines.iter().filter(|(_, line)| line.node == Some(id));
        all.filter_map(|(key, _)| Some((*key, shape.lines.get(key.0)?))).collect()
    }

    fn set_parent(&mut self, id: i64, value: Option<i64>) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.parent = value;
        }
    }

    fn set_node(&mut self, key: (usize, i64), value: Option<i64>) {
        if let Some(line) = self.lines.get_mut(&key) {
            line.node = value;
        }
    }
}

/// What a foreign key leaves of a row that refers to a key.
enum Left {
    Row(Option<i64>),
    Nothing,
}

/// `to`: the key's new value, or none if it is deleted.
fn after(one: &Referring, action: Action, to: Option<i64>) -> Result<Left, Refused> {
    match (action, to) {
        (Action::Nothing | Action::Restrict, _) => Err(Refused),
        (Action::Cascade, Some(to)) => Ok(Left::Row(Some(to))),
        (Action::Cascade, None) => Ok(Left::Nothing),
        (Action::SetNull, _) => {
            if one.not_null {
                Err(Refused)
            } else {
                Ok(Left::Row(None))
            }
        }
        (Action::SetDefault, _) => match one.has_default {
            true => Ok(Left::Row(Some(ROOT))),
            false if one.not_null => Err(Refused),
            false => Ok(Left::Row(None)),
        },
    }
}
