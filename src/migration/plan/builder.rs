//! The part of a description that columns and tables have in common.

use sqlx::PgPool;

use super::changes::{Changes, statement_of};
use super::description::{Description, Shape};
use crate::config::{ConfigError, Problem};
use crate::migration::batch::{
    BatchOptions, Mapping, MappingCode, NEEDS_FORWARD_ROWS, Outline, Part, Sides, Throttle,
};
use crate::migration::catalog::{CopyTriggers, check_name, check_table, quote_table};
use crate::migration::schema::Index;

/// Describes a migration within one database. `S` holds what only columns or only tables need.
///
/// [`ColumnMigrationBuilder`](super::ColumnMigrationBuilder) and
/// [`TableMigrationBuilder`](super::TableMigrationBuilder) are the two kinds.
#[derive(Debug, Clone)]
#[must_use = "a description does nothing until it is built"]
pub struct SqlMigrationBuilder<S> {
    pub(super) pool: PgPool,
    pub(super) key: Vec<String>,
    pub(super) batches: BatchOptions,
    pub(super) throttle: Throttle,
    pub(super) changes: Changes,
    pub(super) sensitive: bool,
    pub(super) has_guard: bool,
    pub(super) mirrors: bool,
    pub(super) uses_existing: bool,
    pub(super) by_files: bool,
    pub(super) sides: S,
}

/// Both sides as their builder has described them.
pub(super) struct Described {
    pub(super) old: String,
    pub(super) new: String,
    pub(super) forward: Mapping,
    pub(super) backward: Mapping,
    pub(super) part: Option<Part>,
    pub(super) shape: Shape,
}

impl<S> SqlMigrationBuilder<S> {
    pub(super) fn over(pool: PgPool, sides: S) -> Self {
        Self {
            pool,
            key: Vec::new(),
            batches: BatchOptions::default(),
            throttle: Throttle::default(),
            changes: Changes::default(),
            sensitive: false,
            has_guard: true,
            mirrors: false,
            uses_existing: false,
            by_files: false,
            sides,
        }
    }

    /// A column of the key by which rows are visited; call it once for each column.
    ///
    /// The columns together must have a unique index and be `NOT NULL`; in a migration of a table, in both tables.
    /// Without this setting the table's primary key is used or, if it has none, its shortest unique index over columns
    /// that are `NOT NULL`.
    pub fn key(mut self, column: &str) -> Self {
        self.key.push(column.to_owned());
        self
    }

    /// A statement that runs with the one that makes the new side, in the same transaction; call it once for each
    /// statement. If the plan did not make the new side, the statement does not run.
    ///
    /// With cargo feature `lint`, [Squawk](https://squawkhq.com) checks the statement. A statement that would block the
    /// table, break a running build or lose data is refused with the name of the rule; [`allow`](Self::allow) lets it
    /// pass.
    pub fn expand_sql(mut self, statement: &str) -> Self {
        self.changes.expand.push(statement_of(statement));
        self
    }

    /// A statement that runs before the drop of the old side, in the same transaction, for example to drop what
    /// depends on it. It is linted as [`expand_sql`](Self::expand_sql), except for drops.
    pub fn contract_sql(mut self, statement: &str) -> Self {
        self.changes.contract.push(statement_of(statement));
        self
    }

    /// An index on the new side's table: its name and what follows the table, for example
    /// `(status) where status <> 'done'`.
    ///
    /// It is built with `CREATE INDEX CONCURRENTLY` in `verify`, when the rows are copied and no request reads the new
    /// side yet. An invalid index of that name, left by a failed build, is dropped first. A valid index of that name
    /// must have this definition, or the migration waits. The build blocks no writer; `cutover status` names the
    /// transactions that the build itself waits for.
    ///
    /// If a build of the service adds an index after the scan has ended, the next scan builds it.
    pub fn index(mut self, name: &str, on: &str) -> Self {
        self.changes.indexes.push(Index::new(name, false, on));
        self
    }

    /// A unique index, otherwise like [`index`](Self::index). If two rows have the same values, the migration stays in
    /// `verify` and reports them.
    pub fn unique_index(mut self, name: &str, on: &str) -> Self {
        self.changes.indexes.push(Index::new(name, true, on));
        self
    }

    /// Gives the new side what is attached to the old one: indexes, unique, check and foreign key constraints in both
    /// directions, defaults, extended statistics, statistics targets, privileges, comments and sequences.
    ///
    /// This happens in `verify`, when the scan has ended, with statements that block no writer. A constraint is added only
    /// if no row violates it, because from then on the server refuses such rows. What cannot be carried over without a
    /// decision (publications, the replica identity, exclusion constraints, or what concerns columns that the new side does
    /// not have) still holds the move to `ramp`, until a person has run the statements that the problem names, or
    /// [`without`](Self::without) waives it.
    ///
    /// Without this setting `ramp` waits for all of it.
    pub fn carry_over(mut self) -> Self {
        self.changes.carries_over = true;
        self
    }

    /// Waives something that is attached to the old side and that the new side does not need; call it once for each.
    ///
    /// The name is that of the index, constraint, sequence, statistics object or publication, or `default`, `privileges`,
    /// `comment`, `statistics target`, `replica identity` or `not null`. `cutover plan` and `cutover status` show it.
    pub fn without(mut self, name: &str) -> Self {
        self.changes.waived.push(name.to_owned());
        self
    }

    /// Lets the copy fire the table's own triggers, whatever they change.
    ///
    /// A copy updates every row. If a trigger of the table changes other columns then, for example `updated_at`, the plan is
    /// refused until this is decided: here, by [`skip_triggers`](Self::skip_triggers), or in the trigger itself. Copies and
    /// repairs set `cutover.copying` to `on` in their transactions, so a trigger can return early:
    ///
    /// ```sql
    /// if current_setting('cutover.copying', true) = 'on' then return new; end if;
    /// ```
    pub fn let_triggers_fire(mut self) -> Self {
        self.changes.triggers = CopyTriggers::Fire;
        self
    }

    /// Copies rows with `session_replication_role = replica`, so that neither the table's own triggers fire nor foreign keys
    /// are checked for what the copy writes. The role needs the right to set it.
    pub fn skip_triggers(mut self) -> Self {
        self.changes.triggers = CopyTriggers::Skip;
        self
    }

    /// Lets the statements of this plan break a rule of the linter.
    pub fn allow(mut self, rule: &str) -> Self {
        self.changes.allowed.push(rule.to_owned());
        self
    }

    /// What pauses the work between batches, besides `cutover pause`.
    pub fn throttle(mut self, throttle: Throttle) -> Self {
        self.throttle = throttle;
        self
    }

    /// How the work is cut into batches.
    pub fn batches(mut self, batches: BatchOptions) -> Self {
        self.batches = batches;
        self
    }

    /// Keeps values out of reports about differences; they then contain only the keys.
    ///
    /// By default reports contain the values. The reports are stored in the same database as the table. Hashes would
    /// not help: a status or a date is easy to guess from its hash.
    pub fn sensitive(mut self) -> Self {
        self.sensitive = true;
        self
    }

    /// Leaves it to your own migration files, for example those of `sqlx migrate`, to add the new side and to drop the old
    /// one.
    ///
    /// `cutover plan <migration> --write-files <directory>` writes these files. The migration waits before `expand` until the
    /// new side exists, and in `contract` until the old side is gone. Whatever the new side holds is overwritten. The
    /// library still installs and removes the guard trigger, builds indexes, and makes the new column `NOT NULL`: each of
    /// these needs locks and retries that a file cannot have.
    pub fn schema_by_files(mut self) -> Self {
        (self.by_files, self.uses_existing) = (true, true);
        self
    }

    /// Installs no guard trigger, because only the fleet writes the table or its owner accepts no trigger on it.
    ///
    /// Only a scan can find an external write then. From `retire` on it is lost.
    pub fn without_guard_trigger(mut self) -> Self {
        self.has_guard = false;
        self
    }

    /// The problems of the settings that do not depend on the sides.
    pub(super) fn common_problems(&self, create: Option<&str>, problems: &mut Vec<Problem>) {
        for column in &self.key {
            check_name("key", column, problems);
        }
        self.batches.check(problems);
        self.throttle.check(problems);
        self.changes.check(create, problems);
    }

    /// Puts the description together once it has no problem.
    pub(super) fn described(
        self,
        problems: Vec<Problem>,
        sides: impl FnOnce(S) -> Described,
    ) -> Result<Description, ConfigError> {
        ConfigError::check(problems)?;
        let Self {
            pool,
            key,
            batches,
            throttle,
            changes,
            sensitive,
            has_guard,
            mirrors,
            uses_existing,
            by_files,
            ..
        } = self;
        let Described { old, new, forward, backward, part, shape } = sides(self.sides);
        let sides = Sides { old: quote_table(&old), new: quote_table(&new), forward, backward, part };
        let skips_triggers = changes.triggers == CopyTriggers::Skip;
        let outline = Outline { pool, sides, key, batches, throttle, sensitive, skips_triggers };
        Ok(Description { outline, shape, changes, has_guard, mirrors, uses_existing, by_files })
    }
}

/// A mapping back in Rust needs a mapping there in Rust.
pub(super) fn check_directions(forward_is_sql: bool, backward_is_rust: bool, problems: &mut Vec<Problem>) {
    if forward_is_sql && backward_is_rust {
        problems.push(Problem::new("backward_rows", NEEDS_FORWARD_ROWS));
    }
}

/// Both names of tables, at once.
pub(super) fn check_tables(tables: &[(&'static str, &str)], problems: &mut Vec<Problem>) {
    for (field, table) in tables {
        check_table(field, table, problems);
    }
}

/// A mapping of one column by an SQL expression.
pub(super) fn sql(expression: &str) -> MappingCode {
    MappingCode::Sql(vec![expression.trim().to_owned()])
}
