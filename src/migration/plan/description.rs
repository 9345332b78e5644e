//! What a migration within one database moves, and the text of its schema changes. Pure: nothing here asks the server.

use super::changes::Changes;
use super::files::in_a_file;
use crate::ledger::guard_triggers;
use crate::migration::batch::{ColumnType, Keyset, Mapping, Outline, Part, Scope};
use crate::migration::catalog::{OldSide, quote, unquote};
use crate::migration::phase::Task;
use crate::migration::schema::{GuardTrigger, NO_LIMIT};

/// The id of a migration in statements that are only shown.
const UNKNOWN_ID: &str = ":migration";

/// A migration of a column or of a table.
#[derive(Debug, Clone)]
pub(crate) struct Description {
    pub(crate) outline: Outline,
    pub(crate) shape: Shape,
    pub(crate) changes: Changes,
    pub(crate) has_guard: bool,
    /// Whether the guard trigger mirrors what the service writes.
    pub(crate) mirrors: bool,
    /// Whether a new side that this plan did not make may be used, with what it holds.
    pub(crate) uses_existing: bool,
    /// Whether files of the team add the new side and drop the old one.
    pub(crate) by_files: bool,
}

/// What the two sides are.
#[derive(Debug, Clone)]
pub(crate) enum Shape {
    /// Columns of one table, which the two mappings name. `types` are those of the new ones.
    Columns { types: Vec<String>, not_null: bool },
    /// Two tables, the new one created by this statement, if any.
    Table { create: Option<String> },
}

impl Description {
    /// The table that holds the old side, quoted.
    pub(crate) fn old_table(&self) -> &str {
        &self.outline.sides.old
    }

    /// The table that holds the new side, quoted.
    pub(crate) fn new_table(&self) -> &str {
        &self.outline.sides.new
    }

    /// The part of the old table that moves; `None` if that is the whole table, or columns to others of the same table.
    pub(crate) fn part(&self) -> Option<&Part> {
        self.outline.sides.part.as_ref()
    }

    /// Whether rows move to another table and the old one stays.
    pub(crate) fn moves_some_rows(&self) -> bool {
        self.part().is_some_and(|part| !part.keeps_rows)
    }

    /// The columns of the old side as the catalog has them; empty where it consists of rows.
    pub(crate) fn old_columns(&self) -> Vec<String> {
        let are_columns = self.moves_columns() || self.part().is_some_and(|part| part.keeps_rows);
        names_if(are_columns, &self.outline.sides.backward)
    }

    /// The columns of the new side as the catalog has them; empty where it is a table.
    pub(crate) fn new_columns(&self) -> Vec<String> {
        names_if(self.moves_columns(), &self.outline.sides.forward)
    }

    /// Whether both sides are columns of one table.
    pub(crate) fn moves_columns(&self) -> bool {
        matches!(self.shape, Shape::Columns { .. })
    }

    /// The columns that `expand` adds, quoted, each with its type.
    pub(crate) fn added(&self) -> Vec<(String, String)> {
        match &self.shape {
            Shape::Columns { types, .. } => {
                self.outline.sides.forward.columns.iter().cloned().zip(types.iter().cloned()).collect()
            }
            Shape::Table { .. } => Vec::new(),
        }
    }

    pub(crate) fn old_side(&self) -> OldSide {
        OldSide { table: self.old_table().to_owned(), columns: self.old_columns() }
    }

    /// The guard trigger, for a key of these columns.
    pub(crate) fn guard(&self, key: &[String]) -> Option<GuardTrigger> {
        let sides = &self.outline.sides;
        self.has_guard.then(|| match &self.shape {
            Shape::Columns { .. } => GuardTrigger::on_columns_of(sides, key),
            Shape::Table { .. } => GuardTrigger::on_table(sides, key),
        })
    }

    pub(crate) fn scope(
        &self,
        key: Keyset,
        old_types: Vec<ColumnType>,
        new_types: Vec<ColumnType>,
    ) -> Scope<'_> {
        Scope { sides: &self.outline.sides, key, old_types, new_types }
    }

    /// The statement that makes the new side. `None` if the plan does not make it.
    pub(crate) fn create(&self) -> Option<String> {
        match &self.shape {
            Shape::Columns { .. } => {
                Some(format!("alter table {}{}", self.old_table(), add_columns(&self.added())))
            }
            Shape::Table { create } => create.clone(),
        }
    }

    /// The statement that drops the old side, whose table and columns have these quoted names now.
    pub(crate) fn drop(&self, table: &str, columns: &[String]) -> String {
        let drops: Vec<String> =
            columns.iter().map(|column| format!("drop column if exists {column}")).collect();
        match &*drops {
            [] => format!("drop table if exists {table}"),
            drops => format!("alter table {table} {}", drops.join(", ")),
        }
    }

    /// The statement that drops the old side under the names of the plan.
    fn drop_by_name(&self) -> String {
        match self.part() {
            Some(part) if !part.keeps_rows => {
                format!("delete from {} where {} and …", self.old_table(), part.holds())
            }
            _ => {
                let columns: Vec<String> = self.old_columns().iter().map(|column| quote(column)).collect();
                self.drop(self.old_table(), &columns)
            }
        }
    }

    /// See [`Plan::files`](crate::migration::coordinator::Plan::files).
    pub(crate) fn files(&self) -> Vec<(Task, String)> {
        let text = |statements: Vec<String>| statements.iter().map(|one| format!("{one};\n")).collect();
        let expand = self.create().into_iter().chain(self.changes.expand.clone()).collect();
        let contract = self.changes.contract.iter().cloned().chain([self.drop_by_name()]).collect();
        vec![(Task::Expand, text(expand)), (Task::Contract, text(contract))]
    }

    /// See [`Plan::sql`](crate::migration::coordinator::Plan::sql).
    pub(crate) fn sql(&self) -> Vec<(Task, String)> {
        self.sql_with(&self.outline.key)
    }

    /// The same for a table with this key; empty if it is not known.
    pub(crate) fn sql_with(&self, key: &[String]) -> Vec<(Task, String)> {
        let key = if key.is_empty() { vec!["key".to_owned()] } else { key.to_vec() };
        let sides = &self.outline.sides;
        let placeholder = |mapping: &Mapping| vec![ColumnType::unknown(); mapping.columns.len()];
        let new_types = match &self.shape {
            Shape::Columns { types, .. } => types.iter().map(|text| ColumnType::described(text)).collect(),
            Shape::Table { .. } => placeholder(&sides.forward),
        };
        let scope = self.scope(Keyset::named(&key), placeholder(&sides.backward), new_types);
        let guard = self.guard(&key);
        let arm = guard.as_ref().map(|guard| guard.arm_as_written(UNKNOWN_ID));
        let disarm = self.has_guard.then(|| guard_triggers::disarm(self.old_table(), UNKNOWN_ID));
        let by = |statement: String| if self.by_files { in_a_file(&statement) } else { statement };
        let expand: Vec<String> = self
            .create()
            .map(by)
            .into_iter()
            .chain(arm)
            .chain(self.changes.expand.iter().cloned().map(by))
            .collect();
        let not_null: Vec<String> = match &self.shape {
            Shape::Columns { not_null: true, .. } => {
                let steps = |column: &String| not_null_steps(self.old_table(), column, UNKNOWN_ID);
                sides.forward.columns.iter().flat_map(steps).collect()
            }
            _ => Vec::new(),
        };
        let contract: Vec<String> = not_null
            .into_iter()
            .chain(disarm)
            .chain(self.changes.contract.iter().cloned().map(by))
            .chain([by(self.drop_by_name())])
            .collect();
        let mut tasks = scope.described(&expand.join(";\n"), &contract.join(";\n"));
        self.changes.describe(self.new_table(), &mut tasks);
        tasks
    }
}

fn names_if(are_columns: bool, mapping: &Mapping) -> Vec<String> {
    let columns = mapping.columns.iter().filter(|_| are_columns);
    columns.map(|column| unquote(column)).collect()
}

/// The part of a statement that adds columns, also as the only ones of an empty list.
pub(crate) fn add_columns(columns: &[(String, String)]) -> String {
    let adds: Vec<String> = columns
        .iter()
        .map(|(column, sql_type)| format!(" add column if not exists {column} {sql_type}"))
        .collect();
    adds.join(",")
}

/// The constraint through which a new column becomes `NOT NULL`. Its name carries the migration's id, so that two
/// migrations of one table never replace each other's.
pub(crate) fn not_null_check(id: &str) -> String {
    format!("\"cutover_{id}_not_null\"")
}

/// Makes a column `NOT NULL` without a scan under a lock that blocks readers and writers, one statement after the
/// other.
///
/// `SET NOT NULL` and the drop of the check are two statements: in one, Postgres drops the check first and then has to
/// scan all rows.
pub(crate) fn not_null_steps(table: &str, column: &str, id: &str) -> [String; 4] {
    let check = not_null_check(id);
    [
        format!(
            "alter table {table} drop constraint if exists {check}, \
             add constraint {check} check ({column} is not null) not valid"
        ),
        format!("{NO_LIMIT}alter table {table} validate constraint {check}"),
        format!("alter table {table} alter column {column} set not null"),
        format!("alter table {table} drop constraint {check}"),
    ]
}
