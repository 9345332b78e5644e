//! What a change adds and drops, and the statements for people to read. Pure: nothing here asks the server.

use std::time::Duration;

use sqlx::PgPool;

use super::addition::Addition;
use crate::ledger::guard_triggers;
use crate::ledger::write_watch::{Dropped, WriteWatch};
use crate::migration::catalog::{OldSide, beside, quote};
use crate::migration::phase::Task;
use crate::migration::plan::files::in_a_file;

/// The id of a migration in statements that are only shown.
const UNKNOWN_ID: &str = ":migration";

#[derive(Debug, Clone)]
pub(super) struct Description {
    pub(super) pool: PgPool,
    /// Quoted.
    pub(super) table: String,
    pub(super) additions: Vec<Addition>,
    pub(super) removal: Option<Removal>,
    /// How long no writer and no read may have been seen.
    pub(super) quiet_period: Duration,
    pub(super) without_read_check: bool,
    /// Whether a file of the team makes the drop.
    pub(super) by_files: bool,
}

/// What the change drops. Names are those of the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Removal {
    Column(String),
    Table,
    Index(String),
}

impl Description {
    /// What `contract` drops, under its described name.
    pub(super) fn old_side(&self) -> Option<OldSide> {
        let table = self.table.clone();
        Some(match self.removal.as_ref()? {
            Removal::Column(column) => OldSide { table, columns: vec![column.clone()] },
            Removal::Table => OldSide { table, columns: Vec::new() },
            Removal::Index(index) => OldSide { table: self.index(index), columns: Vec::new() },
        })
    }

    /// The index's quoted name, with the schema of the table if that is named with one.
    pub(super) fn index(&self, name: &str) -> String {
        beside(&self.table, name)
    }

    /// The statement that drops it, under its present name. `None`: nothing is dropped, or an index, which is dropped
    /// concurrently.
    pub(super) fn drop(&self, table: &str, column: Option<&str>) -> Option<String> {
        match (self.removal.as_ref()?, column) {
            (Removal::Column(_), Some(column)) => {
                Some(format!("alter table {table} drop column if exists {column}"))
            }
            (Removal::Table, _) => Some(format!("drop table if exists {table}")),
            _ => None,
        }
    }

    /// The triggers that watch writers of `table`; `None` if the triggers could not recognize a writer.
    /// `dropped_column` is its present name, quoted. `checks`: the expressions of the checks, resolved; empty for
    /// statements that are only shown.
    pub(super) fn watch(
        &self,
        table: &str,
        dropped_column: Option<&str>,
        checks: &[String],
    ) -> Option<WriteWatch> {
        let mut checks = checks.iter();
        let mut is_simple = true;
        let mut conditions = Vec::new();
        for addition in &self.additions {
            let check = addition.expression().and_then(|_| {
                is_simple = false;
                checks.next().map(String::as_str)
            });
            conditions.extend(addition.forbids(check));
        }
        let forbidden = (!conditions.is_empty()).then(|| conditions.join(" or "));
        let dropped = match &self.removal {
            Some(Removal::Column(_)) => dropped_column.map(|column| Dropped::Column(column.to_owned())),
            Some(Removal::Table) => Some(Dropped::Table),
            _ => None,
        };
        let table = table.to_owned();
        (forbidden.is_some() || dropped.is_some()).then_some(WriteWatch {
            table,
            forbidden,
            is_simple,
            dropped,
        })
    }

    /// The change as text, by which its triggers are recognized.
    pub(super) fn as_text(&self) -> String {
        format!("{:?} {:?}", self.additions, self.removal)
    }

    /// What checks and foreign keys demand of a row, in order.
    pub(super) fn checks(&self) -> Vec<String> {
        self.additions.iter().filter_map(Addition::expression).collect()
    }

    /// See [`Plan::sql`](crate::migration::coordinator::Plan::sql).
    pub(super) fn sql(&self) -> Vec<(Task, String)> {
        let table = &self.table;
        let column = match &self.removal {
            Some(Removal::Column(column)) => Some(quote(column)),
            _ => None,
        };
        let watch = self.watch(table, column.as_deref(), &[]).map(|watch| watch.install(UNKNOWN_ID, &[], ""));
        let looks: Vec<String> =
            self.additions.iter().map(|addition| addition.violations(table, "key")).collect();
        let (mut enforce, mut relax, mut contract) = (Vec::new(), Vec::new(), Vec::new());
        for (number, addition) in self.additions.iter().enumerate() {
            let name = addition.name(UNKNOWN_ID, number);
            match (addition.add(table, &name), addition.index()) {
                (Some(add), _) => {
                    enforce
                        .extend([add, format!("alter table {table} validate constraint {}", quote(&name))]);
                    relax.push(format!("alter table {table} drop constraint if exists {}", quote(&name)));
                }
                (None, Some(index)) => {
                    enforce.push(index.create(table));
                    relax.push(format!("drop index concurrently if exists {}", self.index(&name)));
                }
                (None, None) => {}
            }
            contract.extend(addition.complete(table, &name, false));
        }
        if let Some(Removal::Index(index)) = &self.removal {
            contract.push(format!("drop index concurrently if exists {}", self.index(index)));
        }
        contract.extend(watch.is_some().then(|| guard_triggers::disarm(table, UNKNOWN_ID)));
        let drop = self.drop(table, column.as_deref());
        contract.extend(drop.map(|drop| if self.by_files { in_a_file(&drop) } else { drop }));
        let text =
            |statements: Vec<String>| statements.iter().map(|one| format!("{one};\n")).collect::<String>();
        let mut tasks = vec![
            (Task::Expand, text(watch.into_iter().collect())),
            (Task::Backfill, text(looks.clone())),
            (Task::Scan, text(looks)),
            (Task::Enforce, text(enforce)),
            (Task::Relax, text(relax)),
        ];
        tasks.retain(|(_, sql)| !sql.is_empty());
        tasks.push((Task::Contract, text(contract)));
        tasks
    }
}
