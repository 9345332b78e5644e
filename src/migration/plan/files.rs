//! Schema changes that a team's own migration files make (`schema_by_files`).

use crate::migration::coordinator::PlanError;
use crate::migration::runtime::Migration;

/// A statement as people read it in a plan, where a file runs it.
pub(crate) fn in_a_file(statement: &str) -> String {
    format!("-- in a migration file (`schema_by_files`)\n{statement}")
}

/// `what`: what the migration waits for, for example `the drop of table notes`.
pub(crate) fn waits_for_file(what: &str, migration: &Migration) -> PlanError {
    PlanError::NotNow(format!(
        "{what} by a migration file (`schema_by_files`); to unblock: run that file, which `cutover plan {} --write-files \
         <directory>` writes",
        migration.name()
    ))
}
