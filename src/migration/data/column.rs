use async_trait::async_trait;
use sqlx::{PgConnection, PgPool};

use super::ddl;
use super::options::{BatchOptions, InvalidPlan, Problem};
use super::sql::{Statements, check_name, is_plain, quote};
use super::sweep::{self, Sweep};
use crate::fleet::unnamed;
use crate::migration::control::{Facts, Migration, Plan, PlanError, Task};

/// Moves the values of one column into another one of the same table.
///
/// It adds the new column, fills it in batches while the service goes on writing both, compares all rows, and
/// drops the old column at the very end. `forward` computes the new column's value from the old one, `backward`
/// the other way; both are SQL expressions over the row's columns, named without their table. They must depend
/// on nothing but the row.
///
/// ```
/// use cutover::migration::PhaseRange;
/// use cutover::migration::control::Spec;
/// use cutover::migration::data::{ColumnMigration, InvalidPlan};
///
/// fn spec(pool: sqlx::PgPool) -> Result<Spec, InvalidPlan> {
///     let plan = ColumnMigration::new(pool, "orders")
///         .key("id")
///         .column("old_payment_status", "new_payment_status", "text")
///         .forward("lower(trim(old_payment_status))")
///         .backward("upper(new_payment_status)")
///         .build()?;
///     Ok(Spec::new("payment-status", PhaseRange::FULL).plan(plan))
/// }
/// ```
///
/// # What the table needs
///
/// A key: a column of type `smallint`, `integer` or `bigint` that is `NOT NULL` and unique by itself. An old
/// column that is nullable or has a default, since from `retire` on rows are inserted without it. Both are
/// checked before the first statement changes anything.
///
/// # Rights
///
/// `ALTER TABLE` needs the table's owner. Where the service's role is another one, the refusal says which
/// statement the owner has to run; the migration goes on when it finds the outcome.
#[derive(Debug, Clone)]
pub struct ColumnMigration {
    pub(super) pool: PgPool,
    pub(super) sql: Statements,
    pub(super) names: Names,
    pub(super) batches: BatchOptions,
}

/// The names as the catalog has them.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    pub(super) table: String,
    pub(super) key: String,
    pub(super) old: String,
    pub(super) new: String,
}

impl ColumnMigration {
    /// Begins the description of a migration of a column of `table`, which may be written with its schema:
    /// `billing.orders`. Names are taken as the catalog has them, so an upper-case letter is one.
    ///
    /// `pool` is what the batches run on: a pool of the service's database.
    #[expect(clippy::new_ret_no_self, reason = "what is new is a description; `build` makes it whole")]
    pub fn new(pool: PgPool, table: &str) -> ColumnMigrationBuilder {
        ColumnMigrationBuilder {
            pool,
            names: Names { table: table.to_owned(), ..Names::default() },
            new_type: String::new(),
            forward: String::new(),
            backward: String::new(),
            batches: BatchOptions::default(),
        }
    }

    /// What each task would execute, for people to read. Words with a colon in front stand for the numbers of a
    /// batch.
    pub fn sql(&self) -> Vec<(Task, String)> {
        let batch = |work: String| format!("{};\n{work}", self.sql.batch_end(":from", ":upper", ":rows"));
        vec![
            (Task::Expand, self.sql.expand()),
            (Task::Backfill, batch(self.sql.copy_forward(":from", ":to"))),
            (Task::Scan, batch(self.sql.differences(":old_type", ":from", ":to"))),
            (Task::ReverseBackfill, batch(self.sql.copy_back(":from", ":to"))),
            (Task::Contract, self.sql.contract()),
        ]
    }
}

#[async_trait]
impl Plan for ColumnMigration {
    async fn facts(&self, connection: &mut PgConnection) -> Result<Facts, sqlx::Error> {
        let (table, old, new): (bool, bool, bool) = unnamed::query_as(
            "select to_regclass($1) is not null, \
                    exists (select 1 from pg_attribute \
                        where attrelid = to_regclass($1) and attname = $2 and not attisdropped), \
                    exists (select 1 from pg_attribute \
                        where attrelid = to_regclass($1) and attname = $3 and not attisdropped)",
        )
        .bind(&self.sql.table)
        .bind(&self.names.old)
        .bind(&self.names.new)
        .fetch_one(connection)
        .await?;
        Ok(Facts { expanded: new, contracted: table && !old })
    }

    async fn run(&self, task: Task, migration: &Migration) -> Result<(), PlanError> {
        match task {
            Task::Expand => ddl::expand(self, migration).await,
            Task::Backfill => sweep::run(self, Sweep::Forward, migration).await,
            Task::ReverseBackfill => sweep::run(self, Sweep::Back, migration).await,
            Task::Scan => sweep::run(self, Sweep::Compare, migration).await,
            Task::Contract => ddl::contract(self, migration).await,
        }
    }
}

/// Describes a [`ColumnMigration`].
#[derive(Debug, Clone)]
#[must_use = "a description does nothing until it is built"]
pub struct ColumnMigrationBuilder {
    pool: PgPool,
    names: Names,
    new_type: String,
    forward: String,
    backward: String,
    batches: BatchOptions,
}

impl ColumnMigrationBuilder {
    /// The column by which rows are visited: an integer, unique and not null.
    pub fn key(mut self, key: &str) -> Self {
        self.names.key = key.to_owned();
        self
    }

    /// The old column, the new one, and the new one's type.
    pub fn column(mut self, old: &str, new: &str, new_type: &str) -> Self {
        self.names.old = old.to_owned();
        self.names.new = new.to_owned();
        self.new_type = new_type.to_owned();
        self
    }

    /// The new column's value, as an SQL expression over the old column.
    pub fn forward(mut self, expression: &str) -> Self {
        self.forward = expression.trim().to_owned();
        self
    }

    /// The old column's value, as an SQL expression over the new column.
    pub fn backward(mut self, expression: &str) -> Self {
        self.backward = expression.trim().to_owned();
        self
    }

    /// How the work is cut into batches.
    pub fn batches(mut self, batches: BatchOptions) -> Self {
        self.batches = batches;
        self
    }

    /// Checks the description.
    ///
    /// # Errors
    ///
    /// [`InvalidPlan`] with everything that is wrong. What only the database can tell, such as whether the
    /// table exists, is checked when the first task runs.
    pub fn build(self) -> Result<ColumnMigration, InvalidPlan> {
        let problems = self.problems();
        if !problems.is_empty() {
            return Err(InvalidPlan { problems });
        }
        let Self { pool, names, new_type, forward, backward, batches } = self;
        let parts: Vec<&str> = names.table.split('.').collect();
        let sql = Statements {
            table: parts.iter().map(|part| quote(part)).collect::<Vec<_>>().join("."),
            relation: parts.last().map(|part| quote(part)).unwrap_or_default(),
            key: quote(&names.key),
            old: quote(&names.old),
            new: quote(&names.new),
            new_type,
            forward,
            backward,
        };
        Ok(ColumnMigration { pool, sql, names, batches })
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let names = &self.names;
        let parts = names.table.split('.').count();
        if parts > 2 || !names.table.split('.').all(is_plain) {
            problems.push(Problem::new(
                "table",
                format!("{:?} is no plain name: write `orders` or `billing.orders`", names.table),
            ));
        }
        check_name("key", &names.key, &mut problems);
        check_name("column.old", &names.old, &mut problems);
        check_name("column.new", &names.new, &mut problems);
        if names.old == names.new {
            problems.push(Problem::new("column.new", format!("{:?} is the old column", names.new)));
        }
        if names.key == names.old || names.key == names.new {
            problems.push(Problem::new("key", format!("{:?} is one of the migrated columns", names.key)));
        }
        let is_type = |c: char| c.is_ascii_alphanumeric() || "_ ,.()[]\"".contains(c);
        if self.new_type.trim().is_empty() || !self.new_type.chars().all(is_type) {
            problems.push(Problem::new(
                "column.new_type",
                format!("{:?} is no type: write for example `text` or `numeric(12, 2)`", self.new_type),
            ));
        }
        for (field, expression, over) in
            [("forward", &self.forward, &names.old), ("backward", &self.backward, &names.new)]
        {
            if expression.is_empty() {
                problems.push(Problem::new(field, format!("is missing: an SQL expression over {over:?}")));
            }
        }
        self.batches.check(&mut problems);
        problems
    }
}

#[cfg(test)]
mod tests {
    use sqlx::postgres::PgPoolOptions;

    use super::*;

    fn pool() -> PgPool {
        PgPoolOptions::new().connect_lazy("postgres://nobody@127.0.0.1:1/none").expect("a url")
    }

    #[tokio::test]
    async fn everything_that_is_wrong_is_named_at_once() {
        let error = ColumnMigration::new(pool(), "a.b.c")
            .key("old")
            .column("old", "old", "text; drop table x")
            .forward("  ")
            .batches(BatchOptions { min_rows: 0, ..BatchOptions::default() })
            .build()
            .expect_err("refused");
        let fields: Vec<&str> = error.problems.iter().map(|problem| problem.field).collect();
        assert_eq!(
            fields,
            ["table", "column.new", "key", "column.new_type", "forward", "backward", "batches.min_rows"]
        );
        assert!(error.to_string().contains("billing.orders"), "{error}");
    }

    #[tokio::test]
    async fn names_are_quoted_and_a_schema_is_kept() {
        let plan = ColumnMigration::new(pool(), "billing.Orders")
            .key("id")
            .column("old", "new", "numeric(12, 2)")
            .forward("old::numeric")
            .backward("new::text")
            .build()
            .expect("valid");
        let statements = plan.sql();
        assert_eq!(
            statements[0].1,
            "alter table \"billing\".\"Orders\" add column if not exists \"new\" numeric(12, 2)"
        );
        assert!(statements[2].1.ends_with("for no key update of \"Orders\""), "{}", statements[2].1);
        let tasks: Vec<Task> = statements.iter().map(|(task, _)| *task).collect();
        assert_eq!(tasks.len(), 5);
        for name in ["id; drop table x", "a b", "1a", "", "é"] {
            let builder = ColumnMigration::new(pool(), "orders").column("old", "new", "text");
            let error = builder.key(name).forward("old").backward("new").build().expect_err(name);
            assert_eq!(error.problems[0].field, "key");
        }
    }
}
