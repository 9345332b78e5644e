use std::sync::Arc;

use async_trait::async_trait;
use sqlx::{PgConnection, PgPool};

use super::changes::{Changes, common_settings};
use super::column_steps;
use crate::config::{ConfigError, Problem};
use crate::ledger::unprepared;
use crate::migration::batch::{
    BatchOptions, ColumnType, Keyset, MapRows, Mapping, MappingCode, NEEDS_FORWARD_ROWS, Outline, PassKind,
    Scope, Sides, Throttle, pass, repair,
};
use crate::migration::catalog::{OldSide, check_name, check_table, quote, quote_table};
use crate::migration::coordinator::{Plan, PlanError};
use crate::migration::phase::{Facts, Task};
use crate::migration::runtime::Migration;
use crate::migration::schema::{GuardTrigger, guard, index, rearm};

/// Moves the values of one column into another one of the same table.
///
/// It adds the new column, fills it in batches while the service goes on writing both, compares all rows, and
/// drops the old column at the very end. `forward` computes the new column's value from the old one, `backward`
/// the other way; both are SQL expressions over the row's columns, named without their table. They must depend
/// on nothing but the row.
///
/// ```
/// use cutover::migration::PhaseRange;
/// use cutover::migration::MigrationSpec;
/// use cutover::ConfigError;
/// use cutover::migration::ColumnMigration;
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
/// A unique index over columns that are `NOT NULL`, of whatever types: its order is the one in which rows are
/// visited. An old column that is nullable or has a default, since from `retire` on rows are inserted without it. Both
/// are checked before the first statement changes anything.
///
/// # Rights
///
/// `ALTER TABLE` needs the table's owner. Where the service's role is another one, the refusal says which
/// statement the owner has to run; the migration goes on when it finds the outcome.
#[derive(Debug, Clone)]
pub struct ColumnMigration {
    pub(crate) outline: Outline,
    pub(crate) sql: Statements,
    pub(crate) names: Names,
    pub(crate) trap: Option<GuardTrigger>,
    pub(crate) changes: Changes,
    pub(crate) not_null: bool,
}

/// The names as the catalog has them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Names {
    pub(crate) table: String,
    pub(crate) old: String,
    pub(crate) new: String,
}

/// What changes the schema. Names are quoted.
#[derive(Debug, Clone)]
pub(crate) struct Statements {
    pub(crate) table: String,
    pub(crate) old: String,
    pub(crate) new: String,
    pub(crate) new_type: String,
}

impl Statements {
    pub(crate) fn expand(&self) -> String {
        format!("alter table {} add column if not exists {} {}", self.table, self.new, self.new_type)
    }

    /// The constraint by which the new column becomes `NOT NULL`.
    pub(crate) fn check(&self, names: &Names) -> String {
        let name: String = format!("cutover_{}_not_null", names.new).chars().take(63).collect();
        quote(&name)
    }

    /// What makes the new column `NOT NULL` without a scan under a lock: one after the other, each by itself. The check
    /// goes in a statement of its own, because one that does both drops it first and then has to look at every row.
    pub(crate) fn not_null(&self, names: &Names) -> [String; 4] {
        let (table, new, check) = (&self.table, &self.new, self.check(names));
        [
            format!(
                "alter table {table} drop constraint if exists {check}, \
                 add constraint {check} check ({new} is not null) not valid"
            ),
            format!("set local statement_timeout = 0; alter table {table} validate constraint {check}"),
            format!("alter table {table} alter column {new} set not null"),
            format!("alter table {table} drop constraint {check}"),
        ]
    }

    pub(crate) fn contract(&self) -> String {
        format!("alter table {} drop column if exists {}", self.table, self.old)
    }
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
            key: Vec::new(),
            new_type: String::new(),
            forward: MappingCode::Sql(vec![String::new()]),
            backward: MappingCode::Sql(vec![String::new()]),
            batches: BatchOptions::default(),
            throttle: Throttle::default(),
            changes: Changes::default(),
            sensitive: false,
            has_trap: true,
            not_null: false,
        }
    }

    /// What each task would execute, for people to read. `$1`, `$2`, … are a batch's last key and, from the second
    /// batch on, the last key of the batch before.
    pub fn sql(&self) -> Vec<(Task, String)> {
        let key = if self.outline.key.is_empty() { vec!["key".to_owned()] } else { self.outline.key.clone() };
        let scope = Scope {
            sides: &self.outline.sides,
            key: Keyset::named(&key),
            old_types: vec![ColumnType::unknown()],
            new_types: vec![ColumnType::described(&self.sql.new_type)],
        };
        let trap = self.trap.iter().map(|trap| trap.armed_as(":migration"));
        let expand: Vec<String> =
            std::iter::once(self.sql.expand()).chain(trap).chain(self.changes.expand.clone()).collect();
        let not_null = if self.not_null { self.sql.not_null(&self.names).to_vec() } else { Vec::new() };
        let disarm =
            self.trap.iter().map(|_| guard::disarmed_as(&self.sql.table, &self.sql.new, ":migration"));
        let contract: Vec<String> = not_null
            .into_iter()
            .chain(disarm)
            .chain(self.changes.contract.clone())
            .chain([self.sql.contract()])
            .collect();
        let mut tasks = scope.described(&expand.join(";\n"), &contract.join(";\n"));
        self.changes.describe(&self.sql.table, &mut tasks);
        tasks
    }

    pub(crate) fn old(&self) -> OldSide {
        OldSide { table: self.sql.table.clone(), column: Some(self.names.old.clone()) }
    }

    async fn sweep(&self, sweep: PassKind, migration: &Migration) -> Result<(), PlanError> {
        let scope = column_steps::check(self, migration).await?;
        pass::run(&self.outline, scope, sweep, migration).await
    }

    async fn repair(&self, migration: &Migration) -> Result<(), PlanError> {
        let scope = column_steps::check(self, migration).await?;
        repair::run(&self.outline.pool, &scope, migration).await
    }
}

#[async_trait]
impl Plan for ColumnMigration {
    fn sql(&self) -> Vec<(Task, String)> {
        self.sql()
    }

    fn old_side(&self) -> Option<OldSide> {
        Some(self.old())
    }

    async fn facts(&self, connection: &mut PgConnection) -> Result<Facts, sqlx::Error> {
        let (table, old, new): (bool, bool, bool) = unprepared::query_as(
            "select to_regclass($1) is not null, \
                    exists (select 1 from pg_attribute \
                        where attrelid = to_regclass($1) and attname = $2 and not attisdropped), \
                    exists (select 1 from pg_attribute \
                        where attrelid = to_regclass($1) and attname = $3 and not attisdropped)",
        )
        .bind(&self.sql.table)
        .bind(&self.names.old)
        .bind(&self.names.new)
        .fetch_one(&mut *connection)
        .await?;
        let armed = match &self.trap {
            Some(trap) => trap.is_armed(connection, None).await?,
            None => true,
        };
        Ok(Facts { expanded: new && armed, contracted: table && !old })
    }

    async fn run(&self, task: Task, migration: &Migration) -> Result<(), PlanError> {
        match task {
            Task::Expand => column_steps::expand(self, migration).await,
            Task::Backfill => {
                if let Some(trap) = &self.trap {
                    rearm(&self.outline.pool, &self.sql.table, trap, migration).await?;
                }
                self.sweep(PassKind::Forward, migration).await
            }
            Task::Repair => self.repair(migration).await,
            Task::ReverseBackfill => self.sweep(PassKind::Back, migration).await,
            Task::Scan => {
                index::ensure(&self.outline.pool, &self.sql.table, &self.changes.indexes, migration).await?;
                self.sweep(PassKind::Compare, migration).await
            }
            Task::Contract => column_steps::contract(self, migration).await,
        }
    }
}

/// Describes a [`ColumnMigration`].
#[derive(Debug, Clone)]
#[must_use = "a description does nothing until it is built"]
pub struct ColumnMigrationBuilder {
    pool: PgPool,
    names: Names,
    key: Vec<String>,
    new_type: String,
    forward: MappingCode,
    backward: MappingCode,
    batches: BatchOptions,
    throttle: Throttle,
    changes: Changes,
    sensitive: bool,
    has_trap: bool,
    not_null: bool,
}

impl ColumnMigrationBuilder {
    /// A column of the key by which rows are visited; called once for each of several. Together they have to be
    /// unique and not null. Without it the table's primary key is taken or, where it has none, its shortest unique
    /// index over columns that are not null.
    pub fn key(mut self, column: &str) -> Self {
        self.key.push(column.to_owned());
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
        self.forward = MappingCode::Sql(vec![expression.trim().to_owned()]);
        self
    }

    /// The new column's value, made in Rust from the table's row.
    pub fn forward_rows(mut self, mapping: impl MapRows) -> Self {
        self.forward = MappingCode::Rust(Arc::new(mapping));
        self
    }

    /// The old column's value, as an SQL expression over the new column.
    pub fn backward(mut self, expression: &str) -> Self {
        self.backward = MappingCode::Sql(vec![expression.trim().to_owned()]);
        self
    }

    /// The old column's value, made in Rust from the table's row.
    ///
    /// The way back is also tried: `forward` then gets a row of the key and the old column alone.
    pub fn backward_rows(mut self, mapping: impl MapRows) -> Self {
        self.backward = MappingCode::Rust(Arc::new(mapping));
        self
    }

    /// Keeps the columns' values out of reports about differences: these name the keys only.
    ///
    /// Without it values are shown, because a report lies in the same database as the table and is of little use
    /// without them. They are left out rather than hashed: a status or a date is soon guessed.
    pub fn sensitive(mut self) -> Self {
        self.sensitive = true;
        self
    }

    /// Makes the new column `NOT NULL`, in `contract`: only then is there nobody any more who writes the old column and
    /// leaves this one out. By a constraint that is first added without a look at the rows and then validated while
    /// everybody writes, so that no lock lasts as long as a look at all rows. With a null in the column the drop waits, and
    /// says so; from when there is none, a write of one is refused.
    pub fn not_null(mut self) -> Self {
        self.not_null = true;
        self
    }

    /// Arms no trap: nobody but the fleet writes the table, or its owner wants no trigger on it.
    ///
    /// What a stranger writes then is found by the scan at best, and from `retire` on it is lost.
    pub fn without_guard_trigger(mut self) -> Self {
        self.has_trap = false;
        self
    }

    common_settings!();

    /// Checks the description.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with everything that is wrong. What only the database can tell, such as whether the
    /// table exists, is checked when the first task runs.
    pub fn build(self) -> Result<ColumnMigration, ConfigError> {
        ConfigError::check(self.problems())?;
        let Self {
            pool,
            names,
            key,
            new_type,
            forward,
            backward,
            batches,
            throttle,
            changes,
            sensitive,
            has_trap,
            not_null,
        } = self;
        let table = quote_table(&names.table);
        let sql =
            Statements { table: table.clone(), old: quote(&names.old), new: quote(&names.new), new_type };
        let mapping =
            |column: &str, code| Mapping { columns: vec![column.to_owned()], code, is_object: false };
        let sides = Sides {
            old: table.clone(),
            new: table,
            forward: mapping(&sql.new, forward),
            backward: mapping(&sql.old, backward),
        };
        let trap = has_trap.then(|| GuardTrigger::on_column(&sql.table, &sql.old, &sql.new, &sides));
        Ok(ColumnMigration {
            outline: Outline { pool, sides, key, batches, throttle, sensitive },
            sql,
            names,
            trap,
            changes,
            not_null,
        })
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let names = &self.names;
        check_table("table", &names.table, &mut problems);
        for column in &self.key {
            check_name("key", column, &mut problems);
        }
        check_name("column.old", &names.old, &mut problems);
        check_name("column.new", &names.new, &mut problems);
        if names.old == names.new {
            problems.push(Problem::new("column.new", format!("{:?} is the old column", names.new)));
        }
        if let Some(column) = self.key.iter().find(|column| [&names.old, &names.new].contains(column)) {
            problems.push(Problem::new("key", format!("{column:?} is one of the migrated columns")));
        }
        let is_type = |c: char| c.is_ascii_alphanumeric() || "_ ,.()[]\"".contains(c);
        if self.new_type.trim().is_empty() || !self.new_type.chars().all(is_type) {
            problems.push(Problem::new(
                "column.new_type",
                format!("{:?} is no type: write for example `text` or `numeric(12, 2)`", self.new_type),
            ));
        }
        for (field, code, over) in
            [("forward", &self.forward, &names.old), ("backward", &self.backward, &names.new)]
        {
            if matches!(code, MappingCode::Sql(expressions) if expressions.iter().any(String::is_empty)) {
                problems.push(Problem::new(field, format!("is missing: an SQL expression over {over:?}")));
            }
        }
        if matches!((&self.forward, &self.backward), (MappingCode::Sql(_), MappingCode::Rust(_))) {
            problems.push(Problem::new("backward_rows", NEEDS_FORWARD_ROWS));
        }
        self.batches.check(&mut problems);
        self.throttle.check(&mut problems);
        self.changes.check(None, &mut problems);
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
        let fields: Vec<&str> = error.problems.iter().map(|problem| &*problem.field).collect();
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
        let add = "alter table \"billing\".\"Orders\" add column if not exists \"new\" numeric(12, 2);\n";
        assert!(statements[0].1.starts_with(add), "{}", statements[0].1);
        assert!(statements[0].1.contains("create trigger \"zzz_cutover_new\""), "{}", statements[0].1);
        assert!(
            statements[1].1.contains("update \"billing\".\"Orders\" set \"new\" = (old::numeric)"),
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
