//! What else a plan changes in the schema: statements of the user, and indexes on the new side.

use crate::config::Problem;
use crate::migration::catalog::{CopyTriggers, check_name};
use crate::migration::phase::Task;
use crate::migration::schema::Index;

/// The changes as described.
#[derive(Debug, Clone, Default)]
pub(crate) struct Changes {
    /// Run with the statement that makes the new side, in the same transaction.
    pub(crate) expand: Vec<String>,
    /// Run before the drop of the old side, in the same transaction.
    pub(crate) contract: Vec<String>,
    pub(crate) indexes: Vec<Index>,
    /// Whether the library gives the new side what is attached to the old one.
    pub(crate) carries_over: bool,
    /// What to do about the triggers that a copy fires.
    pub(crate) triggers: CopyTriggers,
    /// Names of what is attached to the old side and is not wanted on the new one.
    pub(crate) waived: Vec<String>,
    /// Rules of the linter that the statements may break.
    pub(crate) allowed: Vec<String>,
}

/// The statement so that another one can follow after a semicolon, even if it ends with a comment.
pub(crate) fn statement_of(text: &str) -> String {
    let statement = text.trim().trim_end_matches(';');
    let end = if statement.lines().next_back().is_some_and(|line| line.contains("--")) { "\n" } else { "" };
    format!("{statement}{end}")
}

impl Changes {
    /// Adds the indexes to the statements of the scan.
    pub(crate) fn describe(&self, table: &str, tasks: &mut [(Task, String)]) {
        let creates: String = self.indexes.iter().map(|index| index.create(table) + ";\n").collect();
        for (_, sql) in tasks.iter_mut().filter(|(task, _)| *task == Task::Scan) {
            sql.insert_str(0, &creates);
        }
    }

    /// `create` is the statement that makes the new side, if the user wrote it.
    pub(crate) fn check(&self, create: Option<&str>, problems: &mut Vec<Problem>) {
        for index in &self.indexes {
            check_name("index", &index.name, problems);
            if !(index.on.starts_with('(') || index.on.starts_with("using")) || index.on.contains(';') {
                problems.push(Problem::new(
                    "index",
                    format!(
                        "{:?}: write what follows the table, for example `(status) where status <> 'done'`",
                        index.on
                    ),
                ));
            }
        }
        for (field, statements) in [("expand_sql", &self.expand), ("contract_sql", &self.contract)] {
            for statement in statements {
                if statement.to_lowercase().contains("concurrently") {
                    let problem = format!(
                        "`{statement}` cannot run in a transaction: describe indexes with `.index(…)`"
                    );
                    problems.push(Problem::new(field, problem));
                } else if statement.trim().is_empty() {
                    problems.push(Problem::new(field, "is empty: leave it out"));
                }
            }
        }
        self.lint(create, problems);
    }

    #[cfg(feature = "lint")]
    fn lint(&self, create: Option<&str>, problems: &mut Vec<Problem>) {
        use super::lint::{check, check_rules};

        let named = |field, statements: &[String]| -> Vec<_> {
            statements.iter().map(|statement| (field, statement.clone())).collect()
        };
        let mut expand: Vec<_> = create.map(|create| ("create", create.to_owned())).into_iter().collect();
        expand.extend(named("expand_sql", &self.expand));
        check(&expand, &self.allowed, problems);
        check(&named("contract_sql", &self.contract), &self.allowed, problems);
        check_rules(&self.allowed, problems);
    }

    #[cfg(not(feature = "lint"))]
    fn lint(&self, _: Option<&str>, problems: &mut Vec<Problem>) {
        if !self.allowed.is_empty() {
            problems.push(Problem::new(
                "allow",
                "has no effect without the cargo feature `lint`: enable it, or leave `.allow(…)` out",
            ));
        }
    }
}
