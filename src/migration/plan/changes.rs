//! What else a plan changes in the schema: statements of the user's own, and indexes on the new side.

use crate::config::Problem;
use crate::migration::catalog::check_name;
use crate::migration::phase::Task;
use crate::migration::schema::Index;

/// As it was described.
#[derive(Debug, Clone, Default)]
pub(crate) struct Changes {
    /// With the new side, in the same transaction.
    pub(crate) expand: Vec<String>,
    /// With the drop of the old side, in the same transaction.
    pub(crate) contract: Vec<String>,
    pub(crate) indexes: Vec<Index>,
    /// Rules of the linter that may be broken.
    pub(crate) allowed: Vec<String>,
}

/// As others can follow it behind a semicolon, whatever comment it ends with.
pub(crate) fn statement_of(text: &str) -> String {
    let statement = text.trim().trim_end_matches(';');
    let end = if statement.lines().next_back().is_some_and(|line| line.contains("--")) { "\n" } else { "" };
    format!("{statement}{end}")
}

impl Changes {
    /// Adds the indexes to what a scan executes.
    pub(crate) fn describe(&self, table: &str, tasks: &mut [(Task, String)]) {
        let creates: String = self.indexes.iter().map(|index| index.create(table) + ";\n").collect();
        for (_, sql) in tasks.iter_mut().filter(|(task, _)| *task == Task::Scan) {
            sql.insert_str(0, &creates);
        }
    }

    /// `create` is the statement that makes the new side, where the user has written it.
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
                    let problem =
                        format!("`{statement}` can't run in a transaction: describe indexes by `.index(…)`");
                    problems.push(Problem::new(field, problem));
                } else if statement.trim().is_empty() {
                    problems.push(Problem::new(field, "is empty"));
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
            problems.push(Problem::new("allow", "nothing is linted without the cargo feature `lint`"));
        }
    }
}

/// What both descriptions take, in their builders.
macro_rules! common_settings {
    () => {
        /// A statement of your own that runs with the one that makes the new side, in the same transaction; called once for
        /// each. Where somebody else has made the new side, it is his to run.
        ///
        /// With cargo feature `lint` it is held against [Squawk](https://squawkhq.com): what would block the table, break a
        /// build that is still running or lose data is refused with the rule's name, and [`allow`](Self::allow) lets it pass.
        pub fn expand_sql(mut self, statement: &str) -> Self {
            self.changes.expand.push($crate::migration::plan::changes::statement_of(statement));
            self
        }

        /// A statement of your own that runs with the drop of the old side, in the same transaction and before it: to drop
        /// what depends on it. Linted as [`expand_sql`](Self::expand_sql), but for its drops.
        pub fn contract_sql(mut self, statement: &str) -> Self {
            self.changes.contract.push($crate::migration::plan::changes::statement_of(statement));
            self
        }

        /// An index on the new side's table: its name and what follows the table, as in `(status) where status <> 'done'`.
        ///
        /// It is built concurrently in `verify`, when the rows are there and nobody reads them from it yet; an invalid one
        /// that a failed build has left is dropped first. A valid one by that name has to be what is described here, or the
        /// migration waits. It makes nobody wait; whom it waits for itself is in `cutover status`.
        ///
        /// A build that adds one when the scan has ended gets it with the next scan.
        pub fn index(mut self, name: &str, on: &str) -> Self {
            self.changes.indexes.push($crate::migration::schema::Index::new(name, false, on));
            self
        }

        /// The same, and no two rows alike: with two that are, the migration stays in `verify` and says so.
        pub fn unique_index(mut self, name: &str, on: &str) -> Self {
            self.changes.indexes.push($crate::migration::schema::Index::new(name, true, on));
            self
        }

        /// Lets statements break this rule of the linter.
        pub fn allow(mut self, rule: &str) -> Self {
            self.changes.allowed.push(rule.to_owned());
            self
        }

        /// What holds the work still between batches, beside a person's pause.
        pub fn throttle(mut self, throttle: $crate::migration::Throttle) -> Self {
            self.throttle = throttle;
            self
        }

        /// How the work is cut into batches.
        pub fn batches(mut self, batches: $crate::migration::BatchOptions) -> Self {
            self.batches = batches;
            self
        }
    };
}
pub(crate) use common_settings;
