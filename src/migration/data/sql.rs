//! The text of every statement that a column migration runs. Names are checked and quoted once, at
//! construction; expressions are the user's own SQL.

use super::options::Problem;

/// A column migration in SQL. Names are quoted.
#[derive(Debug, Clone)]
pub(super) struct Statements {
    pub(super) table: String,
    /// The table's name without its schema, as `FOR UPDATE OF` wants it.
    pub(super) relation: String,
    pub(super) key: String,
    pub(super) old: String,
    pub(super) new: String,
    pub(super) new_type: String,
    pub(super) forward: String,
    pub(super) backward: String,
}

/// Whether the text is a name that needs no thought: letters, digits and `_`.
pub(super) fn is_plain(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
        && name.len() <= 63
}

pub(super) fn check_name(field: &'static str, name: &str, problems: &mut Vec<Problem>) {
    if !is_plain(name) {
        problems.push(Problem::new(
            field,
            format!("{name:?} is no plain name: letters, digits and `_`, at most 63, no digit first"),
        ));
    }
}

pub(super) fn quote(name: &str) -> String {
    format!("\"{name}\"")
}

/// Whether a column holds something else than it should. A value that is there proves nothing: a side that was
/// written, given up and expanded again is full of stale ones.
fn differs(column: &str, value: &str) -> String {
    if cfg!(cutover_break = "compare") {
        return format!("{column} is null");
    }
    format!("{column} is distinct from ({value})")
}

impl Statements {
    pub(super) fn expand(&self) -> String {
        format!("alter table {} add column if not exists {} {}", self.table, self.new, self.new_type)
    }

    pub(super) fn contract(&self) -> String {
        format!("alter table {} drop column if exists {}", self.table, self.old)
    }

    /// Last key and number of rows of the batch that begins at `from`.
    pub(super) fn batch_end(&self, from: &str, upper: &str, rows: &str) -> String {
        let Self { table, key, .. } = self;
        format!(
            "select max(k)::bigint, count(*) from (select {key} as k from {table} \
             where {key} >= {from} and {key} <= {upper} order by {key} limit {rows}) as batch"
        )
    }

    /// Makes one side of a batch equal to the other. Each row is locked, and where it was changed meanwhile the
    /// condition and the value are computed again from what it holds now; a row that was deleted is passed
    /// over.
    pub(super) fn copy_forward(&self, from: &str, to: &str) -> String {
        self.copy(&self.new, &self.forward, from, to)
    }

    /// As [`Statements::copy_forward`], the other way.
    pub(super) fn copy_back(&self, from: &str, to: &str) -> String {
        self.copy(&self.old, &self.backward, from, to)
    }

    fn copy(&self, target: &str, value: &str, from: &str, to: &str) -> String {
        let Self { table, key, new, forward, .. } = self;
        // Both ways by the new side's words: what the old one said in words of its own stays as it is.
        let differs = differs(new, forward);
        format!(
            "update {table} set {target} = ({value}) where {key} >= {from} and {key} <= {to} and {differs}"
        )
    }

    /// The rows of a batch whose sides differ, or whose value does not survive the way back and forth again.
    /// They are locked, so what is said about them is true of their latest version.
    pub(super) fn differences(&self, old_type: &str, from: &str, to: &str) -> String {
        let Self { table, relation, key, old, new, forward, backward, .. } = self;
        let differs = differs(new, forward);
        format!(
            "select {key}::bigint as k, {differs} as differs \
             from {table} cross join lateral (select ({forward}) as value \
                 from (select ({backward})::{old_type} as {old}) as back) as trip \
             where {key} >= {from} and {key} <= {to} \
               and ({differs} or trip.value is distinct from {new}) \
             order by {key} for no key update of {relation}"
        )
    }

    /// Fails unless the way back can be written to the old column.
    pub(super) fn explain_way_back(&self) -> String {
        format!("explain update {} set {} = ({}) where false", self.table, self.old, self.backward)
    }

    /// Fails unless the forward expression can be computed.
    pub(super) fn explain_forward(&self) -> String {
        format!("explain select ({}) from {} where false", self.forward, self.table)
    }
}
