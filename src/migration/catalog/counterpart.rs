//! The two sides as attachments see them, and what an attachment is.

use super::names::{fit_name, quote, split_table};
use super::rename::rename_columns;

/// The two sides, as far as attachments are concerned.
#[derive(Debug, Clone)]
pub(crate) struct Counterpart<'a> {
    /// Both tables, quoted; the same for a migration of a column.
    pub(crate) old_table: &'a str,
    pub(crate) new_table: &'a str,
    /// Columns of the old side that hold the same thing as a column of the new side, and that column.
    pub(crate) columns: &'a [(String, String)],
    /// Columns of the old side, in a migration of columns, that no single column of the new side replaces.
    pub(crate) unmatched: &'a [String],
    /// The columns of the old side; empty if it is a table.
    pub(crate) moving: &'a [String],
}

/// Something that is attached to the old side and that the new side lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attached {
    /// The name by which it can be waived.
    pub(crate) name: String,
    pub(crate) what: String,
    /// What gives the new side the same; empty if that cannot be derived.
    pub(crate) steps: Vec<Step>,
    /// A query whether rows violate it, which has to be answered before it is added to a table under load.
    pub(crate) violated: Option<String>,
    /// Whether the library may do it on its own.
    pub(crate) is_automatic: bool,
    /// The table, quoted, that the statements lock beside that of the new side.
    pub(crate) other_table: Option<String>,
    pub(crate) trial: Option<Trial>,
}

/// How an attachment is tried before the new side exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trial {
    /// The statement that attaches it to a twin of the new side's table, and perhaps to [`OTHER_TWIN`].
    pub(crate) statement: String,
    /// The table of which that is a twin, quoted.
    pub(crate) other: Option<String>,
    /// Whether rows of the twin refer to none of the real table.
    pub(crate) dangling: Option<String>,
}

/// The twin of the new side's table (quoted). It has the table's name, because an expression may name the table.
pub(crate) fn twin(table: &str) -> String {
    format!("pg_temp.{}", quote(&base(table)))
}

/// The twin of another table than that of the new side.
pub(crate) const OTHER_TWIN: &str = "pg_temp.cutover_other";

/// A statement that gives the new side the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// An index on the new side's table, built concurrently: its name, and what follows the table's.
    Index { name: String, is_unique: bool, on: String },
    /// A statement that holds its lock for a moment only, or a weak one.
    Statement(String),
}

impl Step {
    /// The statement, for an index on `table`.
    pub(crate) fn sql(&self, table: &str) -> String {
        match self {
            Step::Index { name, is_unique, on } => {
                let unique = if *is_unique { "unique " } else { "" };
                format!("create {unique}index concurrently {} on {table} {on}", quote(name))
            }
            Step::Statement(statement) => statement.clone(),
        }
    }
}

impl Counterpart<'_> {
    pub(super) fn is_one_table(&self) -> bool {
        self.old_table == self.new_table
    }

    /// Whether something that needs these columns belongs to the old side.
    pub(super) fn concerns(&self, columns: &[String]) -> bool {
        self.moving.is_empty() || columns.iter().any(|column| self.moving.contains(column))
    }

    /// How an attachment is tried that concerns the new side's table only. `what` follows the table's name.
    pub(super) fn trial(&self, before: &str, what: &str) -> Option<Trial> {
        Some(Trial {
            statement: format!("{before} {} {what}", twin(self.new_table)),
            other: None,
            dangling: None,
        })
    }

    pub(super) fn moved(&self, column: &str) -> Option<&str> {
        self.columns.iter().find(|(old, _)| old == column).map(|(_, new)| &**new)
    }

    pub(super) fn map(&self, column: &str) -> Option<String> {
        let same = || {
            (self.is_one_table() && !self.unmatched.iter().any(|one| one == column))
                .then(|| column.to_owned())
        };
        self.moved(column).map(str::to_owned).or_else(same)
    }

    pub(super) fn map_all(&self, columns: &[String]) -> Option<Vec<String>> {
        columns.iter().map(|column| self.map(column)).collect()
    }

    pub(super) fn rename(&self, text: &str) -> String {
        rename_columns(text, |column| self.moved(column).map(quote))
    }

    /// A name for the copy of an object. Two migrations of one table may copy the same object, so it names the new side.
    pub(super) fn name(&self, old: &str) -> String {
        let pairs = match self.is_one_table() {
            true => self.columns.to_vec(),
            false => vec![(base(self.old_table), base(self.new_table))],
        };
        let renamed = pairs.iter().fold(old.to_owned(), |name, (old, new)| name.replacen(&**old, new, 1));
        let new_side = pairs.first().map_or("new", |(_, new)| new);
        fit_name(if renamed == old { format!("{old}_{new_side}") } else { renamed })
    }
}

/// A table's name without its schema.
pub(super) fn base(table: &str) -> String {
    split_table(table).1
}

pub(super) fn list(columns: &[String]) -> String {
    columns.iter().map(|column| quote(column)).collect::<Vec<_>>().join(", ")
}

pub(super) fn attached(name: &str, what: String, steps: Vec<Step>) -> Attached {
    Attached {
        name: name.to_owned(),
        what,
        steps,
        violated: None,
        is_automatic: true,
        other_table: None,
        trial: None,
    }
}

pub(super) fn statement(text: String) -> Step {
    Step::Statement(text)
}
