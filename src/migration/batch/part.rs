//! A part of the old table that moves, while the table stays.

use super::keyset::Span;
use super::sides::{Part, Scope, Sides, zip};

impl Sides {
    /// The same sides, where each row of the old table belongs to the part.
    pub(super) fn of_all_rows(&self) -> Self {
        let all = |part: &Part| Part { condition: "true".to_owned(), ..part.clone() };
        Self { part: self.part.as_ref().map(all), ..self.clone() }
    }
}

impl Scope<'_> {
    /// What a row of `table` has to fulfil besides, to be one of its side.
    pub(super) fn and_moves(&self, table: &str) -> String {
        let Sides { old, part, .. } = self.sides;
        let part = part.as_ref().filter(|_| table == old);
        part.map(|part| format!(" and {}", part.holds())).unwrap_or_default()
    }

    pub(super) fn keeps_rows(&self) -> bool {
        self.sides.part.as_ref().is_some_and(|part| part.keeps_rows)
    }

    /// Takes rows out of a side: as a rule a delete, and for columns that move to another table an update.
    pub(super) fn take_out(&self, table: &str) -> String {
        let Sides { old, backward, .. } = self.sides;
        if table != old || !self.keeps_rows() {
            return format!("delete from {table} as t");
        }
        let set = zip(&backward.columns, &backward.columns, |column, _| format!("{column} = default"));
        format!("update {table} as t set {set}")
    }

    /// The statement that deletes the moved rows of a span from the old table.
    pub(crate) fn remove(&self, span: &Span) -> String {
        let old = &self.sides.old;
        format!("delete from {old} where {}{}", self.key.within(span), self.and_moves(old))
    }
}
