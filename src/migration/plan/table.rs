use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use sqlx::{PgConnection, PgPool};

use super::changes::{Changes, common_settings, statement_of};
use crate::config::{ConfigError, Problem};
use crate::ledger::unprepared;
use crate::migration::batch::{
    BatchOptions, ColumnType, Keyset, MapRows, Mapping, MappingCode, NEEDS_FORWARD_ROWS, Outline, PassKind,
    Scope, Sides, Throttle, keyset, pass, repair,
};
use crate::migration::catalog::{OldSide, check_name, check_table, quote, quote_table};
use crate::migration::coordinator::{Plan, PlanError};
use crate::migration::phase::{Facts, Phase, Task};
use crate::migration::runtime::Migration;
use crate::migration::schema::{GuardTrigger, alter, drop_old_side, guard, index, rearm};

/// Moves rows of one table into another one of the same database, one to one, by a key that both have.
///
/// It creates the new table if it is told how, copies in batches while the service goes on writing both, removes
/// what the other table does not have, compares in both directions, and drops the old table at the very end.
/// Mappings are SQL expressions over one row, whose columns are named without their table, or Rust.
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
/// A unique index over the same columns, which are `NOT NULL`, in both. A new table whose other columns have
/// defaults or can be null, and an old one of which that is true from `retire` on for what `column_back` leaves out.
/// The way back is tried for every row, so `forward` may use those old columns only that `backward` makes, and the
/// key.
///
/// # Writers
///
/// They write the old table first, as [`DualWrite`](super::DualWrite) does, and the new one with
/// `insert … on conflict … do update`: while it is being filled the row may not be there yet. Under READ COMMITTED
/// that is enough. A transaction under REPEATABLE READ whose snapshot is older than the batch that copied a row does
/// not see it on the new side: its delete or plain update there finds nothing and says nothing. The scan finds such a
/// row and the migration waits; going back to `expand` and forward again repairs it.
#[derive(Debug, Clone)]
pub struct TableMigration {
    outline: Outline,
    create: Option<String>,
    has_trap: bool,
    /// The trap, once the catalog was asked for the key's columns.
    trap: Arc<OnceLock<GuardTrigger>>,
    changes: Changes,
}

impl TableMigration {
    /// Begins the description of a migration from table `old` to table `new`, each of which may be written with
    /// its schema. Names are taken as the catalog has them, so an upper-case letter is one.
    ///
    /// `pool` is what the batches run on: a pool of the service's database.
    #[expect(clippy::new_ret_no_self, reason = "what is new is a description; `build` makes it whole")]
    pub fn new(pool: PgPool, old: &str, new: &str) -> TableMigrationBuilder {
        TableMigrationBuilder {
            pool,
            old: old.to_owned(),
            new: new.to_owned(),
            key: Vec::new(),
            create: None,
            forward: Described::default(),
            backward: Described::default(),
            batches: BatchOptions::default(),
            throttle: Throttle::default(),
            changes: Changes::default(),
            sensitive: false,
            has_trap: true,
        }
    }

    /// What each task would execute, for people to read. `$1`, `$2`, … are a batch's last key and, from the second
    /// batch on, the last key of the batch before.
    pub fn sql(&self) -> Vec<(Task, String)> {
        let key = if self.outline.key.is_empty() { vec!["key".to_owned()] } else { self.outline.key.clone() };
        let sides = &self.outline.sides;
        let unknown = |mapping: &Mapping| vec![ColumnType::unknown(); mapping.columns.len()];
        let scope = Scope {
            sides,
            key: Keyset::named(&key),
            old_types: unknown(&sides.backward),
            new_types: unknown(&sides.forward),
        };
        let (arm, disarm) = self
            .has_trap
            .then(|| {
                let arm = GuardTrigger::on_table(sides, &key).armed_as(":migration");
                (arm, guard::disarmed_as(&sides.old, &sides.new, ":migration"))
            })
            .unzip();
        let expand: Vec<String> =
            self.create.iter().chain(&self.changes.expand).cloned().chain(arm).collect();
        let contract: Vec<String> =
            disarm.into_iter().chain(self.changes.contract.clone()).chain([self.drop()]).collect();
        let mut tasks = scope.described(&expand.join(";\n"), &contract.join(";\n"));
        self.changes.describe(&sides.new, &mut tasks);
        tasks
    }

    fn drop(&self) -> String {
        format!("drop table if exists {}", self.outline.sides.old)
    }

    async fn expand(&self, migration: &Migration) -> Result<(), PlanError> {
        let Outline { pool, sides, .. } = &self.outline;
        let mut tx = migration.begin(pool).await?;
        let is_there: bool = unprepared::query_scalar("select to_regclass($1) is not null")
            .bind(&sides.new)
            .fetch_one(&mut *tx)
            .await?;
        tx.rollback().await?;
        if !is_there {
            let Some(create) = &self.create else {
                return Err(PlanError::Refused(format!("table {} has to be created", sides.new)));
            };
            let statements: Vec<&str> =
                std::iter::once(&**create).chain(self.changes.expand.iter().map(|one| &**one)).collect();
            alter(pool, &sides.new, migration, Phase::Off, &statements.join(";\n")).await?;
        }
        let mut tx = migration.begin(pool).await?;
        self.inspect(&mut tx).await?;
        let trap = self.trap(&mut tx).await?;
        tx.rollback().await?;
        match trap {
            Some(trap) => alter(pool, &sides.old, migration, Phase::Off, &trap.arm(migration)).await,
            None => Ok(()),
        }
    }

    /// The trap, if there is to be one and the old table has a key.
    async fn trap(&self, connection: &mut PgConnection) -> Result<Option<&GuardTrigger>, sqlx::Error> {
        if !self.has_trap {
            return Ok(None);
        }
        let Outline { sides, key, .. } = &self.outline;
        if self.trap.get().is_none()
            && let Ok(found) = keyset::find(connection, &sides.old, key).await?
        {
            let _ = self.trap.set(GuardTrigger::on_table(sides, &found.plain_names()));
        }
        Ok(self.trap.get())
    }

    async fn sweep(&self, sweep: PassKind, migration: &Migration) -> Result<(), PlanError> {
        let mut tx = migration.begin(&self.outline.pool).await?;
        let scope = self.inspect(&mut tx).await?;
        tx.rollback().await?;
        pass::run(&self.outline, scope, sweep, migration).await
    }

    async fn repair(&self, migration: &Migration) -> Result<(), PlanError> {
        let mut tx = migration.begin(&self.outline.pool).await?;
        let scope = self.inspect(&mut tx).await?;
        tx.rollback().await?;
        repair::run(&self.outline.pool, &scope, migration).await
    }

    /// Whether both tables are as they have to be; every problem at once.
    async fn inspect(&self, tx: &mut PgConnection) -> Result<Scope<'_>, PlanError> {
        let Outline { sides, key, .. } = &self.outline;
        let mut problems = Vec::new();
        let mut found = None;
        let mut types = [Vec::new(), Vec::new()];
        let mappings = [&sides.backward, &sides.forward];
        for ((table, mapping), types) in [&sides.old, &sides.new].into_iter().zip(mappings).zip(&mut types) {
            let there: bool = unprepared::query_scalar("select to_regclass($1) is not null")
                .bind(table)
                .fetch_one(&mut *tx)
                .await?;
            if !there {
                problems.push(format!("table {table} does not exist, or is not on the search_path"));
                continue;
            }
            // The second table has to have the first one's key.
            let wanted = found.as_ref().map_or_else(|| key.clone(), Keyset::plain_names);
            match keyset::find(tx, table, &wanted).await? {
                Ok(keyset) => found = found.or(Some(keyset)),
                Err(reasons) => problems.extend(reasons.iter().map(|reason| format!("{table}: {reason}"))),
            }
            for (column, found) in
                mapping.columns.iter().zip(ColumnType::load(tx, table, &mapping.columns).await?)
            {
                match found {
                    Some(found) => types.push(found),
                    None => problems.push(format!("{table}: column {column} does not exist")),
                }
            }
        }
        let [old_types, new_types] = types;
        match found {
            Some(key) if problems.is_empty() => Ok(Scope { sides, key, old_types, new_types }),
            _ => Err(PlanError::Refused(problems.join("; "))),
        }
    }
}

#[async_trait]
impl Plan for TableMigration {
    fn sql(&self) -> Vec<(Task, String)> {
        self.sql()
    }

    fn old_side(&self) -> Option<OldSide> {
        Some(OldSide { table: self.outline.sides.old.clone(), column: None })
    }

    async fn facts(&self, connection: &mut PgConnection) -> Result<Facts, sqlx::Error> {
        let Sides { old, new, .. } = &self.outline.sides;
        let (old, new): (bool, bool) =
            unprepared::query_as("select to_regclass($1) is not null, to_regclass($2) is not null")
                .bind(old)
                .bind(new)
                .fetch_one(&mut *connection)
                .await?;
        let armed = match self.trap(connection).await? {
            Some(trap) => trap.is_armed(connection, None).await?,
            None => !self.has_trap,
        };
        Ok(Facts { expanded: new && armed, contracted: new && !old })
    }

    async fn run(&self, task: Task, migration: &Migration) -> Result<(), PlanError> {
        let Outline { pool, sides, .. } = &self.outline;
        match task {
            Task::Expand => self.expand(migration).await,
            Task::Backfill => {
                let mut tx = migration.begin(pool).await?;
                let trap = self.trap(&mut tx).await?;
                tx.rollback().await?;
                if let Some(trap) = trap {
                    rearm(pool, &sides.old, trap, migration).await?;
                }
                self.sweep(PassKind::Forward, migration).await
            }
            Task::Repair => self.repair(migration).await,
            Task::ReverseBackfill => self.sweep(PassKind::Back, migration).await,
            Task::Scan => {
                index::ensure(pool, &sides.new, &self.changes.indexes, migration).await?;
                self.sweep(PassKind::Compare, migration).await
            }
            Task::Contract => {
                let trap = self.has_trap.then(|| guard::disarm(&sides.old, &sides.new, migration));
                let statements: Vec<String> =
                    trap.into_iter().chain(self.changes.contract.clone()).chain([self.drop()]).collect();
                drop_old_side(pool, &sides.old, migration, &statements.join(";\n")).await
            }
        }
    }
}

/// One direction as it was described.
#[derive(Default)]
struct Described {
    columns: Vec<String>,
    expressions: Vec<String>,
    in_rust: Option<Arc<dyn MapRows>>,
}

impl Described {
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
            problems.push(Problem::new(rows, "makes all columns or none: leave out the expressions"));
        }
        for (index, column) in self.columns.iter().enumerate() {
            check_name(field, column, problems);
            if self.columns[..index].contains(column) {
                problems.push(Problem::new(field, format!("{column:?} is there twice")));
            }
            if key.contains(column) {
                problems
                    .push(Problem::new(field, format!("{column:?} is in the key, which is copied anyway")));
            }
        }
        for (column, _) in
            self.columns.iter().zip(&self.expressions).filter(|(_, expression)| expression.is_empty())
        {
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

/// Describes a [`TableMigration`].
#[must_use = "a description does nothing until it is built"]
pub struct TableMigrationBuilder {
    pool: PgPool,
    old: String,
    new: String,
    key: Vec<String>,
    create: Option<String>,
    forward: Described,
    backward: Described,
    batches: BatchOptions,
    throttle: Throttle,
    changes: Changes,
    sensitive: bool,
    has_trap: bool,
}

impl TableMigrationBuilder {
    /// A column of the key; called once for each of several. It has the same name in both tables. Without it the old
    /// table's primary key is taken or, where it has none, its shortest unique index over columns that are not null.
    pub fn key(mut self, column: &str) -> Self {
        self.key.push(column.to_owned());
        self
    }

    /// The statement that creates the new table. Without it somebody else has to, before `expand`.
    pub fn create(mut self, statement: &str) -> Self {
        self.create = Some(statement_of(statement));
        self
    }

    /// A column of the new table, as an SQL expression over a row of the old one.
    pub fn column(mut self, column: &str, expression: &str) -> Self {
        self.forward.push(column, expression);
        self
    }

    /// A column of the old table, as an SQL expression over a row of the new one.
    pub fn column_back(mut self, column: &str, expression: &str) -> Self {
        self.backward.push(column, expression);
        self
    }

    /// A column that is the same in both tables.
    pub fn same(self, column: &str) -> Self {
        let expression = quote(column);
        self.column(column, &expression).column_back(column, &expression)
    }

    /// These columns of the new table, made in Rust from rows of the old one, all together as one object.
    pub fn forward_rows(mut self, columns: &[&str], mapping: impl MapRows) -> Self {
        self.forward.in_rust(columns, mapping);
        self
    }

    /// These columns of the old table, made in Rust from rows of the new one, all together as one object.
    pub fn backward_rows(mut self, columns: &[&str], mapping: impl MapRows) -> Self {
        self.backward.in_rust(columns, mapping);
        self
    }

    /// Keeps values out of reports about differences: these name the keys only.
    pub fn sensitive(mut self) -> Self {
        self.sensitive = true;
        self
    }

    /// Arms no trap on the old table: nobody but the fleet writes it, or its owner wants no trigger on it.
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
    /// tables have the key, is checked when the first task runs.
    pub fn build(self) -> Result<TableMigration, ConfigError> {
        ConfigError::check(self.problems())?;
        let Self {
            pool,
            old,
            new,
            key,
            create,
            forward,
            backward,
            batches,
            throttle,
            changes,
            sensitive,
            has_trap,
        } = self;
        let sides = Sides {
            old: quote_table(&old),
            new: quote_table(&new),
            forward: forward.mapping(),
            backward: backward.mapping(),
        };
        Ok(TableMigration {
            outline: Outline { pool, sides, key, batches, throttle, sensitive },
            create,
            has_trap,
            trap: Arc::default(),
            changes,
        })
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        check_table("old", &self.old, &mut problems);
        check_table("new", &self.new, &mut problems);
        if self.old == self.new {
            problems
                .push(Problem::new("new", format!("{:?} is the old table: use a ColumnMigration", self.new)));
        }
        for column in &self.key {
            check_name("key", column, &mut problems);
        }
        self.forward.check(["column", "forward_rows"], &self.key, &mut problems);
        self.backward.check(["column_back", "backward_rows"], &self.key, &mut problems);
        if self.forward.in_rust.is_none() && self.backward.in_rust.is_some() {
            problems.push(Problem::new("backward_rows", NEEDS_FORWARD_ROWS));
        }
        self.batches.check(&mut problems);
        self.throttle.check(&mut problems);
        self.changes.check(self.create.as_deref(), &mut problems);
        problems
    }
}

#[cfg(test)]
mod tests {
    use sqlx::postgres::PgPoolOptions;

    use super::*;

    #[tokio::test]
    async fn everything_that_is_wrong_is_named_at_once() {
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
