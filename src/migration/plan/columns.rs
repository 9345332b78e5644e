use std::sync::Arc;

use sqlx::PgPool;

use super::builder::{Described, SqlMigrationBuilder, check_directions, check_tables, sql};
use super::description::Shape;
use super::new_type;
use super::sql_migration::SqlMigration;
use crate::config::{ConfigError, Problem};
use crate::migration::batch::{MapRows, Mapping, MappingCode};
use crate::migration::catalog::{check_name, quote};

/// Moves the values of one column into another column of the same table.
///
/// The plan adds the new column, fills it in batches while the service writes both columns, compares all rows, and
/// drops the old column at the end. `forward` computes the new column's value from the old one, `backward` the other
/// way round. Both are SQL expressions over the row's columns, which are named without their table. They must depend on
/// the row only: a function such as `now()` is refused. They are evaluated with the time zone UTC, whatever the session
/// has set.
///
/// ```
/// use cutover::ConfigError;
/// use cutover::migration::{ColumnMigration, MigrationSpec, PhaseRange};
///
/// fn spec(pool: sqlx::PgPool) -> Result<MigrationSpec, ConfigError> {
///     let plan = ColumnMigration::new(pool, "orders")
///         .key("id")
///         .column("old_payment_status", "new_payment_status", "text")
///         .forward("lower(trim(old_payment_status))")
///         .backward("upper(new_payment_status)")
///         .build()?;
///     Ok(MigrationSpec::new("payment-status", PhaseRange::FULL).plan(plan))
/// }
/// ```
///
/// # What the table needs
///
/// - A unique index over columns that are `NOT NULL`. Rows are visited in its order.
/// - An old column that an insert may leave out, because from `retire` on no insert names it.
///
/// `expand` checks this and more, before the first statement changes anything, and reports every problem at once with
/// its remedy. `cutover plan` and the preflight show the same list.
///
/// # Rights
///
/// `ALTER TABLE` needs the table's owner. If the service's role is another one, the refusal contains the statement that
/// the owner has to run, and the migration continues when it finds the result.
pub type ColumnMigration = SqlMigration<Column>;

/// Describes a [`ColumnMigration`].
pub type ColumnMigrationBuilder = SqlMigrationBuilder<Column>;

/// The two columns of a [`ColumnMigration`], as described so far.
#[derive(Debug, Clone)]
pub struct Column {
    table: String,
    /// Old column, new column, type. More than one is a mistake that `build` reports.
    pairs: Vec<[String; 3]>,
    forward: MappingCode,
    backward: MappingCode,
    not_null: bool,
}

impl SqlMigration<Column> {
    /// Begins the description of a migration of a column of `table`, which may carry its schema: `billing.orders`.
    /// Names are those of the catalog, so they are case-sensitive.
    ///
    /// `pool` is the pool of the service's database on which the batches run.
    #[expect(clippy::new_ret_no_self, reason = "it begins a description, which `build` completes")]
    pub fn new(pool: PgPool, table: &str) -> ColumnMigrationBuilder {
        let column = Column {
            table: table.to_owned(),
            pairs: Vec::new(),
            forward: sql(""),
            backward: sql(""),
            not_null: false,
        };
        SqlMigrationBuilder::over(pool, column)
    }
}

impl SqlMigrationBuilder<Column> {
    /// The old column, the new one, and the new one's type, for example `numeric(12, 2)`.
    ///
    /// The type is only a type. A default, an index or a constraint has its own setting: see
    /// [`expand_sql`](Self::expand_sql), [`index`](Self::index) and [`not_null`](Self::not_null).
    pub fn column(mut self, old: &str, new: &str, new_type: &str) -> Self {
        self.sides.pairs.push([old, new, new_type].map(str::to_owned));
        self
    }

    /// The new column's value, as an SQL expression over the old column.
    pub fn forward(mut self, expression: &str) -> Self {
        self.sides.forward = sql(expression);
        self
    }

    /// The new column's value, computed in Rust from the table's row.
    pub fn forward_rows(mut self, mapping: impl MapRows) -> Self {
        self.sides.forward = MappingCode::Rust(Arc::new(mapping));
        self
    }

    /// The old column's value, as an SQL expression over the new column.
    pub fn backward(mut self, expression: &str) -> Self {
        self.sides.backward = sql(expression);
        self
    }

    /// The old column's value, computed in Rust from the table's row.
    ///
    /// The scan also tries the way there and back. It then calls `forward` with a row that holds only the key and the
    /// old column.
    pub fn backward_rows(mut self, mapping: impl MapRows) -> Self {
        self.sides.backward = MappingCode::Rust(Arc::new(mapping));
        self
    }

    /// Makes the new column `NOT NULL` in `contract`, when no writer leaves it out any more.
    ///
    /// A check constraint is added without a scan and then validated while others write, so no lock lasts as long as a
    /// scan. While some row holds a null, the drop of the old column waits and says so. From the moment when no row
    /// does, a write of a null is refused.
    pub fn not_null(mut self) -> Self {
        self.sides.not_null = true;
        self
    }

    /// Lets the service write one side only: the guard trigger mirrors the write to the other side, in the same statement.
    ///
    /// [`Migration::columns`](crate::migration::Migration::columns) says which columns a statement names. There is no second
    /// repository and no second statement. Both mappings have to be SQL. A write whose value cannot be mapped fails, in every
    /// phase from `expand` to `switch`. From `retire` on nothing is mirrored, and a pinned write of the old side is refused.
    ///
    /// A transaction of this build is refused (SQLSTATE `ZC004`) while the guard trigger is missing or disabled.
    pub fn mirror_writes(mut self) -> Self {
        self.mirrors = true;
        self
    }

    /// Uses a new column that somebody else made, and overwrites what it holds.
    ///
    /// Without this setting a column of that name that this migration did not add is refused.
    pub fn use_existing_column(mut self) -> Self {
        self.uses_existing = true;
        self
    }

    /// Checks the description.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with every problem. What only the database knows, such as whether the table exists, is checked
    /// by the preflight and before the first task runs.
    pub fn build(self) -> Result<ColumnMigration, ConfigError> {
        let problems = self.problems();
        let description =
            self.described(problems, |Column { table, pairs, forward, backward, not_null }| {
                let [old, new, new_type] = pairs.into_iter().next().unwrap_or_default();
                let (old, new) = (quote(&old), quote(&new));
                let mapping =
                    |column: &str, code| Mapping { columns: vec![column.to_owned()], code, is_object: false };
                Described {
                    old: table.clone(),
                    new: table,
                    forward: mapping(&new, forward),
                    backward: mapping(&old, backward),
                    shape: Shape::Column { old, new, new_type, not_null },
                }
            })?;
        Ok(SqlMigration::of(description))
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let Column { table, pairs, forward, backward, .. } = &self.sides;
        check_tables(&[("table", table)], &mut problems);
        let none = <[String; 3]>::default();
        let [old, new, sql_type] = pairs.first().unwrap_or(&none);
        check_name("column.old", old, &mut problems);
        check_name("column.new", new, &mut problems);
        if old == new {
            problems.push(Problem::new("column.new", format!("{new:?} is the old column")));
        }
        if pairs.len() > 1 {
            problems.push(Problem::new(
                "column",
                format!(
                    "is called {} times, and a migration moves one column: describe one migration for each",
                    pairs.len()
                ),
            ));
        }
        if let Some(column) = self.key.iter().find(|column| [old, new].contains(column)) {
            problems.push(Problem::new(
                "key",
                format!(
                    "{column:?} is one of the migrated columns: name the columns of another unique index"
                ),
            ));
        }
        new_type::check(sql_type, &mut problems);
        for (field, how, over) in [("forward", forward, old), ("backward", backward, new)] {
            if matches!(how, MappingCode::Sql(expressions) if expressions.iter().any(String::is_empty)) {
                problems.push(Problem::new(field, format!("is missing: an SQL expression over {over:?}")));
            }
        }
        check_directions(
            matches!(forward, MappingCode::Sql(_)),
            matches!(backward, MappingCode::Rust(_)),
            &mut problems,
        );
        if self.mirrors && !self.has_guard {
            problems.push(Problem::new(
                "mirror_writes",
                "needs the guard trigger: leave `.without_guard_trigger()` out, or write both sides with a DualWrite",
            ));
        }
        if self.mirrors && [forward, backward].iter().any(|how| matches!(how, MappingCode::Rust(_))) {
            problems.push(Problem::new(
                "mirror_writes",
                "needs both mappings as SQL expressions: the guard trigger cannot call Rust; write both sides with a DualWrite",
            ));
        }
        self.common_problems(None, &mut problems);
        problems
    }
}

#[cfg(test)]
mod tests {
    use sqlx::postgres::PgPoolOptions;

    use super::*;
    use crate::migration::batch::BatchOptions;
    use crate::migration::phase::Task;

    fn pool() -> PgPool {
        PgPoolOptions::new().connect_lazy("postgres://nobody@127.0.0.1:1/none").expect("a url")
    }

    #[tokio::test]
    async fn build_reports_every_problem_at_once() {
        let error = ColumnMigration::new(pool(), "a.b.c")
            .key("old")
            .column("old", "old", "text; drop table x")
            .column("other", "more", "text")
            .forward("  ")
            .batches(BatchOptions { min_rows: 0, ..BatchOptions::default() })
            .build()
            .expect_err("refused");
        let fields: Vec<&str> = error.problems.iter().map(|problem| &*problem.field).collect();
        assert_eq!(
            fields,
            [
                "table",
                "column.new",
                "column",
                "key",
                "column.new_type",
                "forward",
                "backward",
                "batches.min_rows"
            ]
        );
        assert!(error.to_string().contains("billing.orders"), "{error}");
    }

    #[tokio::test]
    async fn statements_quote_names_and_keep_the_schema() {
        let plan = ColumnMigration::new(pool(), "billing.Orders")
            .key("id")
            .column("old", "new", "numeric(12, 2)")
            .forward("old::numeric")
            .backward("new::text")
            .build()
            .expect("valid");
        let statements = plan.sql();
        let add = "alter table \"billing\".\"Orders\" add column if not exists \"new\" numeric(12, 2);\n";
        assert!(statements[0].1.starts_with(add), "{}", statements[0].1);
        assert!(
            statements[0].1.contains("create trigger \"zzz_cutover_:migration_row\""),
            "{}",
            statements[0].1
        );
        assert!(
            statements[1].1.contains("update \"billing\".\"Orders\" set \"new\" = "),
            "{}",
            statements[1].1
        );
        let tasks: Vec<Task> = statements.iter().map(|(task, _)| *task).collect();
        assert_eq!(tasks.len(), 5);
        for name in ["id; drop table x", "a b", "1a", "", "é"] {
            let builder = ColumnMigration::new(pool(), "orders").column("old", "new", "text");
            let error = builder.key(name).forward("old").backward("new").build().expect_err(name);
            assert_eq!(error.problems[0].field, "key");
        }
    }
}
