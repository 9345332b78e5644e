use std::sync::Arc;

use sqlx::PgPool;

use super::builder::{Described, SqlMigrationBuilder, check_directions, check_tables, sql};
use super::description::Shape;
use super::new_type;
use super::sql_migration::SqlMigration;
use crate::config::{ConfigError, Problem};
use crate::migration::batch::{MapRows, Mapping, MappingCode};
use crate::migration::catalog::{check_name, quote};

/// Moves the values of a column, or of several, into other columns of the same table.
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
/// # Several columns
///
/// [`new_column`](SqlMigrationBuilder::new_column) and [`old_column`](SqlMigrationBuilder::old_column) describe any number
/// of columns that move together, each with the expression that computes it from the other side. The numbers of columns may
/// differ, as when a name is split:
///
/// ```
/// # use cutover::ConfigError;
/// # use cutover::migration::ColumnMigration;
/// fn plan(pool: sqlx::PgPool) -> Result<ColumnMigration, ConfigError> {
///     ColumnMigration::new(pool, "people")
///         .new_column("first_name", "text", "split_part(full_name, ' ', 1)")
///         .new_column("last_name", "text", "substr(full_name, length(split_part(full_name, ' ', 1)) + 2)")
///         .old_column("full_name", "first_name || ' ' || last_name")
///         .build()
/// }
/// ```
///
/// A split that loses something (here a name without a blank, which comes back with one) shows before `expand`: the plan
/// tries both ways on some rows and warns. The scan in `verify` tries all of them.
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

/// The columns of a [`ColumnMigration`], as described so far.
#[derive(Debug, Clone)]
pub struct Column {
    table: String,
    /// Old column, new column, type. More than one is a mistake that `build` reports.
    pairs: Vec<[String; 3]>,
    forward: MappingCode,
    backward: MappingCode,
    /// Several new columns: name, type, expression.
    added: Vec<[String; 3]>,
    /// Several old columns: name, expression.
    replaced: Vec<[String; 2]>,
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
            added: Vec::new(),
            replaced: Vec::new(),
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

    /// One of several new columns: its name, its type, and its value as an SQL expression over the old columns. Call it once
    /// for each.
    ///
    /// It comes with [`old_column`](Self::old_column), and takes the place of [`column`](Self::column) and
    /// [`forward`](Self::forward).
    pub fn new_column(mut self, name: &str, new_type: &str, forward: &str) -> Self {
        self.sides.added.push([name, new_type, forward.trim()].map(str::to_owned));
        self
    }

    /// One of several old columns: its name, and its value as an SQL expression over the new columns. Call it once for each.
    ///
    /// It takes the place of [`column`](Self::column) and [`backward`](Self::backward).
    pub fn old_column(mut self, name: &str, backward: &str) -> Self {
        self.sides.replaced.push([name, backward.trim()].map(str::to_owned));
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

    /// Makes each new column `NOT NULL` in `contract`, when no writer leaves it out any more.
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

    /// Uses a new column that this plan did not make, and overwrites what it holds.
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
        let description = self.described(problems, |column| {
            let Column { table, pairs, mut forward, mut backward, mut added, mut replaced, not_null } =
                column;
            if let ([[old, new, new_type]], true) = (&*pairs, added.is_empty()) {
                added = vec![[new.clone(), new_type.clone(), String::new()]];
                replaced = vec![[old.clone(), String::new()]];
            } else {
                forward =
                    MappingCode::Sql(added.iter().map(|[_, _, expression]| expression.clone()).collect());
                backward =
                    MappingCode::Sql(replaced.iter().map(|[_, expression]| expression.clone()).collect());
            }
            let new = added.iter().map(|[name, ..]| quote(name)).collect();
            let old = replaced.iter().map(|[name, _]| quote(name)).collect();
            Described {
                old: table.clone(),
                new: table,
                forward: Mapping { columns: new, code: forward, is_object: false },
                backward: Mapping { columns: old, code: backward, is_object: false },
                part: None,
                shape: Shape::Columns {
                    types: added.into_iter().map(|[_, new_type, _]| new_type).collect(),
                    not_null,
                },
            }
        })?;
        Ok(SqlMigration::of(description))
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let Column { table, added, replaced, .. } = &self.sides;
        check_tables(&[("table", table)], &mut problems);
        if added.is_empty() && replaced.is_empty() {
            self.problems_of_one(&mut problems);
        } else {
            self.problems_of_several(&mut problems);
        }
        if self.mirrors && !self.has_guard {
            problems.push(Problem::new(
                "mirror_writes",
                "needs the guard trigger: leave `.without_guard_trigger()` out, or write both sides with a DualWrite",
            ));
        }
        let Column { forward, backward, .. } = &self.sides;
        if self.mirrors && [forward, backward].iter().any(|how| matches!(how, MappingCode::Rust(_))) {
            problems.push(Problem::new(
                "mirror_writes",
                "needs both mappings as SQL expressions, because the guard trigger cannot call Rust: write both sides with a \
                 DualWrite",
            ));
        }
        self.common_problems(None, &mut problems);
        problems
    }

    /// What is wrong with one column that moves to another one.
    fn problems_of_one(&self, problems: &mut Vec<Problem>) {
        let Column { pairs, forward, backward, .. } = &self.sides;
        let none = <[String; 3]>::default();
        let [old, new, sql_type] = pairs.first().unwrap_or(&none);
        check_name("column.old", old, problems);
        check_name("column.new", new, problems);
        if old == new {
            problems.push(Problem::new("column.new", format!("{new:?} is the old column")));
        }
        if pairs.len() > 1 {
            problems.push(Problem::new(
                "column",
                format!(
                    "is called {} times: describe several columns with `.new_column(…)` and `.old_column(…)`",
                    pairs.len()
                ),
            ));
        }
        self.check_key(&[old, new], problems);
        new_type::check(sql_type, problems);
        for (field, how, over) in [("forward", forward, old), ("backward", backward, new)] {
            if matches!(how, MappingCode::Sql(expressions) if expressions.iter().any(String::is_empty)) {
                problems.push(Problem::new(field, format!("is missing: an SQL expression over {over:?}")));
            }
        }
        check_directions(
            matches!(forward, MappingCode::Sql(_)),
            matches!(backward, MappingCode::Rust(_)),
            problems,
        );
    }

    /// What is wrong with several columns that move together.
    fn problems_of_several(&self, problems: &mut Vec<Problem>) {
        let Column { pairs, forward, backward, added, replaced, .. } = &self.sides;
        let is_unset =
            |how: &MappingCode| matches!(how, MappingCode::Sql(one) if one.iter().all(String::is_empty));
        for (field, is_used, instead) in [
            ("column", !pairs.is_empty(), "`.new_column(…)` and `.old_column(…)`"),
            ("forward", !is_unset(forward), "the expression of `.new_column(…)`"),
            ("backward", !is_unset(backward), "the expression of `.old_column(…)`"),
        ] {
            if is_used {
                problems
                    .push(Problem::new(field, format!("belongs to a single column: use {instead} alone")));
            }
        }
        for (field, is_missing) in [("new_column", added.is_empty()), ("old_column", replaced.is_empty())] {
            if is_missing {
                problems.push(Problem::new(field, "is missing: describe both sides"));
            }
        }
        let old = replaced.iter().map(|[name, expression]| ("old_column", name, expression));
        let new = added.iter().map(|[name, _, expression]| ("new_column", name, expression));
        let mut names: Vec<&String> = Vec::new();
        for (field, name, expression) in old.chain(new) {
            check_name(field, name, problems);
            if names.contains(&name) {
                problems.push(Problem::new(field, format!("{name:?} is described twice")));
            }
            if expression.is_empty() {
                let problem =
                    format!("{name:?} has no value: write an SQL expression over the other side's columns");
                problems.push(Problem::new(field, problem));
            }
            names.push(name);
        }
        self.check_key(&names, problems);
        for [_, sql_type, _] in added {
            new_type::check(sql_type, problems);
        }
    }

    /// The key must stay the same.
    fn check_key(&self, moved: &[&String], problems: &mut Vec<Problem>) {
        if let Some(column) = self.key.iter().find(|column| moved.contains(column)) {
            problems.push(Problem::new(
                "key",
                format!(
                    "{column:?} is one of the migrated columns: name the columns of another unique index"
                ),
            ));
        }
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
    async fn several_columns_have_problems_of_their_own() {
        let error = ColumnMigration::new(pool(), "people")
            .key("name")
            .column("a", "b", "text")
            .backward("x")
            .old_column("name", "first || last")
            .new_column("first", "text not null", "")
            .new_column("first", "text", "name")
            .mirror_writes()
            .without_guard_trigger()
            .build()
            .expect_err("refused");
        let fields: Vec<&str> = error.problems.iter().map(|problem| &*problem.field).collect();
        let expected =
            ["column", "backward", "new_column", "new_column", "key", "column.new_type", "mirror_writes"];
        assert_eq!(fields, expected, "{error}");
        let error =
            ColumnMigration::new(pool(), "people").old_column("name", "first").build().expect_err("one side");
        assert_eq!(error.problems[0].field, "new_column");
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
