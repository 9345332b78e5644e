use std::fmt;
use std::sync::Arc;

use sqlx::PgPool;

use super::builder::{Described, SqlMigrationBuilder, check_directions, check_tables};
use super::changes::statement_of;
use super::description::Shape;
use super::sql_migration::SqlMigration;
use crate::config::{ConfigError, Problem};
use crate::migration::batch::{MapRows, Mapping, MappingCode, Part};
use crate::migration::catalog::{check_name, quote};

/// Moves the rows of one table into another table of the same database, one to one, by a key that both have.
///
/// The plan creates the new table if it has the statement, copies rows in batches while the service writes both tables,
/// deletes rows that the old table does not have, compares in both directions, and drops the old table at the end.
/// A mapping is an SQL expression over one row, whose columns are named without their table, or Rust. It must depend on
/// the row only. SQL is evaluated with the time zone UTC, whatever the session has set.
///
/// ```
/// use cutover::ConfigError;
/// use cutover::migration::TableMigration;
///
/// fn plan(pool: sqlx::PgPool) -> Result<TableMigration, ConfigError> {
///     TableMigration::new(pool, "orders", "billing.orders")
///         .create("create table if not exists billing.orders (id bigint primary key, note text, status text)")
///         .same("note")
///         .column("status", "lower(trim(old_status))")
///         .column_back("old_status", "upper(status)")
///         .build()
/// }
/// ```
///
/// # What the tables need
///
/// - In both tables, a unique index over the same columns, which are `NOT NULL`.
/// - In the new table, defaults or nulls for every column that no mapping fills. In the old table the same, from
///   `retire` on, for what `column_back` leaves out.
/// - The scan tries the way back for every row. So `forward` may use the key and those old columns that `column_back`
///   fills.
///
/// # A part of a table
///
/// [`rows_where`](SqlMigrationBuilder::rows_where) moves some of the rows, and
/// [`only_columns`](SqlMigrationBuilder::only_columns) moves columns to a table that has a row for each row which holds
/// something in them. In both cases the old table stays.
///
/// # Writers
///
/// They write the old table first, as [`DualWrite`](super::super::DualWrite) does, and the new one with
/// `insert … on conflict … do update`, because the row may not have been copied yet. Under READ COMMITTED that is
/// enough. A transaction under REPEATABLE READ whose snapshot is older than the batch that copied a row does not see
/// the copy: its delete or plain update of the new table finds no row. The scan finds such a row and the migration
/// waits; going back to `expand` and forward again repairs it.
pub type TableMigration = SqlMigration<Table>;

/// Describes a [`TableMigration`].
pub type TableMigrationBuilder = SqlMigrationBuilder<Table>;

/// The two tables of a [`TableMigration`], as described so far.
#[derive(Debug, Clone)]
pub struct Table {
    old: String,
    new: String,
    create: Option<String>,
    forward: Direction,
    backward: Direction,
    condition: Option<String>,
    only_columns: bool,
}

/// One direction of the mapping.
#[derive(Clone, Default)]
struct Direction {
    columns: Vec<String>,
    expressions: Vec<String>,
    in_rust: Option<Arc<dyn MapRows>>,
}

impl fmt::Debug for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Direction")
            .field("columns", &self.columns)
            .field("expressions", &self.expressions)
            .field("in_rust", &self.in_rust.is_some())
            .finish()
    }
}

impl Direction {
    fn push(&mut self, column: &str, expression: &str) {
        self.columns.push(column.to_owned());
        self.expressions.push(expression.trim().to_owned());
    }

    fn in_rust(&mut self, columns: &[&str], mapping: impl MapRows) {
        self.columns.extend(columns.iter().map(|column| (*column).to_owned()));
        self.in_rust = Some(Arc::new(mapping));
    }

    fn check(&self, fields: [&'static str; 2], key: &[String], problems: &mut Vec<Problem>) {
        let [field, rows] = fields;
        if self.columns.is_empty() {
            problems.push(Problem::new(field, "is missing: name at least one column besides the key"));
        }
        if self.in_rust.is_some() && !self.expressions.is_empty() {
            problems.push(Problem::new(
                rows,
                "computes all columns of the table: leave out the columns with an SQL expression",
            ));
        }
        for (index, column) in self.columns.iter().enumerate() {
            check_name(field, column, problems);
            if self.columns[..index].contains(column) {
                problems.push(Problem::new(field, format!("{column:?} is described twice: leave one out")));
            }
            if key.contains(column) {
                problems.push(Problem::new(
                    field,
                    format!("{column:?} is part of the key, which is copied anyway: leave it out"),
                ));
            }
        }
        let described = self.columns.iter().zip(&self.expressions);
        for (column, _) in described.filter(|(_, expression)| expression.is_empty()) {
            problems.push(Problem::new(field, format!("{column:?} needs an SQL expression")));
        }
    }

    fn mapping(self) -> Mapping {
        Mapping {
            columns: self.columns.iter().map(|column| quote(column)).collect(),
            code: self.in_rust.map_or(MappingCode::Sql(self.expressions), MappingCode::Rust),
            is_object: true,
        }
    }
}

impl SqlMigration<Table> {
    /// Begins the description of a migration from table `old` to table `new`, each of which may carry its schema.
    /// Names are those of the catalog, so they are case-sensitive.
    ///
    /// `pool` is the pool of the service's database on which the batches run.
    #[expect(clippy::new_ret_no_self, reason = "it begins a description, which `build` completes")]
    pub fn new(pool: PgPool, old: &str, new: &str) -> TableMigrationBuilder {
        let table = Table {
            old: old.to_owned(),
            new: new.to_owned(),
            create: None,
            forward: Direction::default(),
            backward: Direction::default(),
            condition: None,
            only_columns: false,
        };
        SqlMigrationBuilder::over(pool, table)
    }
}

impl SqlMigrationBuilder<Table> {
    /// The statement that creates the new table. Without it, create the table by other means before `expand`.
    pub fn create(mut self, statement: &str) -> Self {
        self.sides.create = Some(statement_of(statement));
        self
    }

    /// A column of the new table, as an SQL expression over a row of the old one.
    pub fn column(mut self, column: &str, expression: &str) -> Self {
        self.sides.forward.push(column, expression);
        self
    }

    /// A column of the old table, as an SQL expression over a row of the new one.
    pub fn column_back(mut self, column: &str, expression: &str) -> Self {
        self.sides.backward.push(column, expression);
        self
    }

    /// A column that is the same in both tables.
    pub fn same(self, column: &str) -> Self {
        let expression = quote(column);
        self.column(column, &expression).column_back(column, &expression)
    }

    /// These columns of the new table, computed in Rust from rows of the old one, all together as one object.
    pub fn forward_rows(mut self, columns: &[&str], mapping: impl MapRows) -> Self {
        self.sides.forward.in_rust(columns, mapping);
        self
    }

    /// These columns of the old table, computed in Rust from rows of the new one, all together as one object.
    pub fn backward_rows(mut self, columns: &[&str], mapping: impl MapRows) -> Self {
        self.sides.backward.in_rust(columns, mapping);
        self
    }

    /// Moves only the rows that fulfil this SQL condition. The old table stays with its other rows.
    ///
    /// A row that comes to fulfil the condition moves to the new table, and one that ceases to leaves it. `contract` deletes
    /// the moved rows from the old table in batches.
    ///
    /// The condition may use the key and columns that `column_back` fills, because a row that comes back has to fulfil it
    /// again. A column of the old table that no `column_back` fills would be lost, so it is refused, unless
    /// [`without`](Self::without) names it.
    ///
    /// ```
    /// # use cutover::{ConfigError, migration::TableMigration};
    /// # fn plan(pool: sqlx::PgPool) -> Result<TableMigration, ConfigError> {
    /// TableMigration::new(pool, "events", "audit_events")
    ///     .create("create table audit_events (id bigint primary key, body text)")
    ///     .rows_where("kind = 'audit'")
    ///     .same("body")
    ///     .column_back("kind", "'audit'")
    ///     .build()
    /// # }
    /// ```
    pub fn rows_where(mut self, condition: &str) -> Self {
        self.sides.condition = Some(statement_of(condition));
        self
    }

    /// Moves the columns that `column_back` fills to a table of their own. The old table stays, and `contract` drops the
    /// columns.
    ///
    /// The new table has a row for each row of the old one that holds something in these columns; with
    /// [`rows_where`](Self::rows_where), for each row that fulfils that condition. A row of the new table that holds nothing
    /// is the same as none. Where a row of the new table is deleted, the old columns get their defaults.
    pub fn only_columns(mut self) -> Self {
        self.sides.only_columns = true;
        self
    }

    /// Uses a new table that this plan did not make and that holds rows. Rows that the old table does not have are
    /// deleted.
    ///
    /// Without this setting a table with rows that this migration did not create is refused.
    pub fn use_existing_table(mut self) -> Self {
        self.uses_existing = true;
        self
    }

    /// Checks the description.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with every problem. What only the database knows, such as whether the tables have the key, is
    /// checked by the preflight and before the first task runs.
    pub fn build(self) -> Result<TableMigration, ConfigError> {
        let problems = self.problems();
        let description = self.described(
            problems,
            |Table { old, new, create, forward, backward, condition, only_columns }| {
                let (forward, backward) = (forward.mapping(), backward.mapping());
                let holds_something =
                    || format!("pg_catalog.num_nonnulls({}) > 0", backward.columns.join(", "));
                let condition = condition.or_else(|| only_columns.then(holds_something));
                let part = condition.map(|condition| Part { condition, keeps_rows: only_columns });
                Described { old, new, forward, backward, part, shape: Shape::Table { create } }
            },
        )?;
        Ok(SqlMigration::of(description))
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let Table { old, new, create, forward, backward, condition, only_columns } = &self.sides;
        check_tables(&[("old", old), ("new", new)], &mut problems);
        if old == new {
            problems.push(Problem::new("new", format!("{new:?} is the old table: use a ColumnMigration")));
        }
        forward.check(["column", "forward_rows"], &self.key, &mut problems);
        backward.check(["column_back", "backward_rows"], &self.key, &mut problems);
        check_directions(forward.in_rust.is_none(), backward.in_rust.is_some(), &mut problems);
        if condition.as_ref().is_some_and(|condition| condition.trim().is_empty()) {
            problems.push(Problem::new("rows_where", "is empty: write a condition, or leave it out"));
        }
        if condition.is_some() && !only_columns && self.by_files {
            let problem =
                "does not work with `rows_where`, because no file can delete rows in batches: leave it out";
            problems.push(Problem::new("schema_by_files", problem));
        }
        self.common_problems(create.as_deref(), &mut problems);
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
        let nothing = |_: &[sqlx::postgres::PgRow]| Vec::new();
        let error = TableMigration::new(pool, "a", "a")
            .key("id")
            .column("id", "id")
            .column("x", " ")
            .forward_rows(&["x"], nothing)
            .build();
        let problems = error.expect_err("refused").problems;
        let fields: Vec<&str> = problems.iter().map(|problem| &*problem.field).collect();
        assert_eq!(fields, ["new", "forward_rows", "column", "column", "column", "column_back"]);
    }
}
