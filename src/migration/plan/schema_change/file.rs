//! The end of a change as a migration file of a team.

use super::addition::{Addition, list};
use super::description::{Description, Removal};
use crate::ledger::literal::text as literal;
use crate::migration::catalog::quote;

impl Description {
    /// The statements that bring any table to the end of the change. What is there already they leave as it is.
    pub(super) fn file(&self) -> Vec<String> {
        let column = match &self.removal {
            Some(Removal::Column(column)) => Some(quote(column)),
            _ => None,
        };
        let drop = match &self.removal {
            Some(Removal::Index(index)) => Some(format!("drop index if exists {}", self.index(index))),
            _ => self.drop(&self.table, column.as_deref()),
        };
        self.additions.iter().map(|addition| addition.unless_present(&self.table)).chain(drop).collect()
    }
}

impl Addition {
    /// The statement that adds it to `table` (quoted), with a check of all rows, unless the table has it.
    fn unless_present(&self, table: &str) -> String {
        let (name, definition) = match self {
            Addition::NotNull { column } => {
                return format!("alter table {table} alter column {} set not null", quote(column));
            }
            Addition::Check { name, expression } => (name, format!("check ({expression}\n)")),
            Addition::Unique { name, columns } => (name, format!("unique ({})", list(columns))),
            Addition::ForeignKey(key) => (&key.name, key.definition()),
        };
        // A partitioned table has the index of a unique constraint only.
        format!(
            "do $cutover$\n\
             begin\n    \
                 if not exists (select from pg_constraint where conrelid = to_regclass({table_name}) and conname = {plain_name})\n        \
                     and not exists (select from pg_index i join pg_class c on c.oid = i.indexrelid\n            \
                         where i.indrelid = to_regclass({table_name}) and c.relname = {plain_name}) then\n        \
                     alter table {table} add constraint {} {definition};\n    \
                 end if;\n\
             end\n\
             $cutover$",
            quote(name),
            table_name = literal(table),
            plain_name = literal(name),
        )
    }
}
