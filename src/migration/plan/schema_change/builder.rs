use std::time::Duration;

use sqlx::PgPool;

use super::addition::{Addition, ForeignKey};
use super::description::{Description, Removal};
use super::run::SchemaChange;
use crate::config::{ConfigError, Problem};
use crate::migration::catalog::{check_name, check_table, quote_table};

/// Describes a [`SchemaChange`].
#[derive(Debug, Clone)]
#[must_use = "a description does nothing until it is built"]
pub struct SchemaChangeBuilder {
    pool: PgPool,
    table: String,
    additions: Vec<Addition>,
    removals: Vec<Removal>,
    quiet_period: Duration,
    without_read_check: bool,
    by_files: bool,
    problems: Vec<Problem>,
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// The parts of `customers (id) on delete cascade`: the table, its columns and the rest.
fn parts(references: &str) -> Option<(&str, Vec<String>, &str)> {
    let (table, rest) = references.split_once('(')?;
    let (columns, rest) = rest.split_once(')')?;
    let columns = columns.split(',').map(|column| column.trim().trim_matches('"').to_owned()).collect();
    Some((table.trim(), columns, rest.trim()))
}

impl SchemaChange {
    /// Begins the description of a change of `table`, which may carry its schema. Names are those of the catalog, so they
    /// are case-sensitive.
    ///
    /// `pool` is a pool of the service's database. Its role must have the rights of the table's owner.
    #[expect(clippy::new_ret_no_self, reason = "it begins a description, which `build` completes")]
    pub fn new(pool: PgPool, table: &str) -> SchemaChangeBuilder {
        SchemaChangeBuilder {
            pool,
            table: table.to_owned(),
            additions: Vec::new(),
            removals: Vec::new(),
            quiet_period: Duration::from_secs(60),
            without_read_check: false,
            by_files: false,
            problems: Vec::new(),
        }
    }
}

impl SchemaChangeBuilder {
    /// Makes a column `NOT NULL`.
    pub fn not_null(mut self, column: &str) -> Self {
        self.additions.push(Addition::NotNull { column: column.to_owned() });
        self
    }

    /// Adds a check constraint, whose expression is SQL over a row's columns, for example `total >= 0`.
    pub fn check(mut self, name: &str, expression: &str) -> Self {
        let (name, expression) = (name.to_owned(), expression.trim().to_owned());
        self.additions.push(Addition::Check { name, expression });
        self
    }

    /// Adds a unique constraint over these columns. A partitioned table gets a unique index of this name instead, which
    /// refuses the same rows; the server has no statement that makes a constraint of it without a lock.
    pub fn unique(mut self, name: &str, columns: &[&str]) -> Self {
        self.additions.push(Addition::Unique { name: name.to_owned(), columns: owned(columns) });
        self
    }

    /// Adds a foreign key. `references` is what follows `REFERENCES`, with the columns: `customers (id) on delete cascade`.
    pub fn foreign_key(mut self, name: &str, columns: &[&str], references: &str) -> Self {
        let Some((table, referenced, rest)) = parts(references) else {
            let problem = format!("{references:?}: write the table and its columns, as in `customers (id)`");
            self.problems.push(Problem::new("foreign_key", problem));
            return self;
        };
        check_table("foreign_key", table, &mut self.problems);
        for column in &referenced {
            check_name("foreign_key", column, &mut self.problems);
        }
        if referenced.len() != columns.len() {
            let problem =
                format!("{columns:?} references {referenced:?}: name as many columns on both sides");
            self.problems.push(Problem::new("foreign_key", problem));
        }
        self.additions.push(Addition::ForeignKey(ForeignKey {
            name: name.to_owned(),
            columns: owned(columns),
            table: quote_table(table),
            referenced,
            rest: rest.to_owned(),
        }));
        self
    }

    /// Drops a column, once no build needs it.
    pub fn drop_column(mut self, column: &str) -> Self {
        self.removals.push(Removal::Column(column.to_owned()));
        self
    }

    /// Drops the table, once no build needs it.
    pub fn drop_table(mut self) -> Self {
        self.removals.push(Removal::Table);
        self
    }

    /// Drops an index of the table, concurrently, once no query uses it.
    pub fn drop_index(mut self, index: &str) -> Self {
        self.removals.push(Removal::Index(index.to_owned()));
        self
    }

    /// How long no writer may have been seen that the change would refuse, and no read of what it drops. Default one
    /// minute. Set it longer than the pause between two runs of a job that may use the old schema, and than the 10 s within
    /// which the server publishes its counts of reads.
    pub fn quiet_period(mut self, time: Duration) -> Self {
        self.quiet_period = time;
        self
    }

    /// Does not wait for reads of what is dropped to stop, for example because a backup reads the table every minute.
    pub fn without_read_check(mut self) -> Self {
        self.without_read_check = true;
        self
    }

    /// Leaves it to your own migration files, for example those of `sqlx migrate`, to drop the column or the table.
    ///
    /// `cutover plan <migration> --write-files <directory>` writes the file. The migration waits for it in `contract`. The
    /// library still installs and removes the triggers that watch writers, and adds constraints: a step back from `retire`
    /// has to drop them again, which no file can do by itself.
    pub fn schema_by_files(mut self) -> Self {
        self.by_files = true;
        self
    }

    /// Checks the description.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with every problem. What only the database knows, such as whether rows violate a constraint, is
    /// checked by the preflight and before the first change.
    pub fn build(self) -> Result<SchemaChange, ConfigError> {
        let problems = self.all_problems();
        ConfigError::check(problems)?;
        let Self { pool, table, additions, mut removals, quiet_period, without_read_check, by_files, .. } =
            self;
        Ok(SchemaChange::of(Description {
            pool,
            table: quote_table(&table),
            additions,
            removal: removals.pop(),
            quiet_period,
            without_read_check,
            by_files,
        }))
    }

    fn all_problems(&self) -> Vec<Problem> {
        let mut problems = self.problems.clone();
        check_table("table", &self.table, &mut problems);
        if self.additions.is_empty() && self.removals.is_empty() {
            problems.push(Problem::new("table", "nothing changes: add a constraint or drop something"));
        }
        let mut names = Vec::new();
        for addition in &self.additions {
            let (field, name, columns) = match addition {
                Addition::NotNull { column } => ("not_null", column, &[][..]),
                Addition::Check { name, expression } => {
                    if expression.is_empty() || expression.contains(';') {
                        let problem = format!("{name:?} needs one SQL expression, for example `total >= 0`");
                        problems.push(Problem::new("check", problem));
                    }
                    ("check", name, &[][..])
                }
                Addition::Unique { name, columns } => ("unique", name, columns.as_slice()),
                Addition::ForeignKey(key) => {
                    if [";", "--", "/*"].iter().any(|part| key.rest.contains(part))
                        || key.rest.to_lowercase().contains("not valid")
                    {
                        let problem =
                            format!("{:?}: write at most actions, as in `on delete cascade`", key.rest);
                        problems.push(Problem::new("foreign_key", problem));
                    }
                    ("foreign_key", &key.name, key.columns.as_slice())
                }
            };
            check_name(field, name, &mut problems);
            if columns.is_empty() && matches!(addition, Addition::Unique { .. } | Addition::ForeignKey(_)) {
                problems.push(Problem::new(field, format!("{name:?} needs at least one column")));
            }
            for column in columns {
                check_name(field, column, &mut problems);
            }
            if names.contains(&name) {
                problems.push(Problem::new(field, format!("{name:?} is described twice: leave one out")));
            }
            names.push(name);
        }
        for removal in &self.removals {
            match removal {
                Removal::Column(column) => {
                    check_name("drop_column", column, &mut problems);
                    if self.additions.iter().any(|addition| addition.columns().contains(column)) {
                        let problem = format!("{column:?} is also given a constraint: do one of the two");
                        problems.push(Problem::new("drop_column", problem));
                    }
                }
                Removal::Table if !self.additions.is_empty() => {
                    problems.push(Problem::new("drop_table", "a table that is dropped needs no constraint"));
                }
                Removal::Table => {}
                Removal::Index(index) => check_name("drop_index", index, &mut problems),
            }
        }
        if self.removals.len() > 1 {
            let problem =
                "a change drops one thing, because a person approves each drop: describe a change for each";
            problems.push(Problem::new("drop", problem));
        }
        if self.by_files && !matches!(self.removals[..], [Removal::Column(_) | Removal::Table, ..]) {
            let problem = "only the drop of a column or a table can be in a file. The library adds constraints, because it \
                drops them on the way back, and drops an index concurrently, which a file that runs in a transaction \
                cannot do: leave it out";
            problems.push(Problem::new("schema_by_files", problem));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use sqlx::postgres::PgPoolOptions;

    use super::*;

    #[tokio::test]
    async fn build_reports_every_problem_at_once() {
        let pool = PgPoolOptions::new().connect_lazy("postgres://nobody@127.0.0.1:1/none").expect("a url");
        let error = SchemaChange::new(pool, "orders")
            .not_null("status")
            .check("positive", " ")
            .unique("by_number", &[])
            .foreign_key("to_customer", &["customer_id"], "customers")
            .foreign_key("to_shop", &["shop_id"], "shops (id, region) on delete cascade")
            .check("positive", "total > 0")
            .drop_column("status")
            .drop_index("old index")
            .build();
        let problems = error.expect_err("refused").problems;
        let fields: Vec<&str> = problems.iter().map(|problem| &*problem.field).collect();
        assert_eq!(
            fields,
            ["foreign_key", "foreign_key", "check", "unique", "check", "drop_column", "drop_index", "drop"]
        );
    }
}
