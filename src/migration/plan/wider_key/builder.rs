use std::sync::Arc;

use sqlx::PgPool;

use crate::config::{ConfigError, Problem};
use crate::migration::batch::{BatchOptions, Mapping, MappingCode, Outline, Sides, Throttle};
use crate::migration::catalog::{check_name, check_table, quote, quote_table};
use crate::migration::plan::recent_look::RecentLook;

/// Makes an `integer` primary key a `bigint`, under its own name and under load.
///
/// The service's queries stay as they are, and no `DualWrite` is needed. A build supports all phases if its code can read
/// the key with either type, for example as `id::bigint`, which is an `i64` before and after. A build that decodes an
/// `i32` supports `off` to `ramp`.
///
/// ```
/// use cutover::ConfigError;
/// use cutover::migration::{MigrationSpec, PhaseRange, WiderKey};
///
/// fn declare(pool: sqlx::PgPool) -> Result<MigrationSpec, ConfigError> {
///     let key = WiderKey::new(pool, "orders", "id").build()?;
///     Ok(MigrationSpec::new("orders_id", PhaseRange::FULL).plan(key))
/// }
/// ```
///
/// # What the table needs
///
/// - A primary key over this one column, of type `integer` or `smallint`, with an identity, a sequence, or neither.
/// - Nothing else that names the column: no foreign key of its own, no further index, no view, no generated column. `expand`
///   names each of them with what to do, before the first statement changes anything.
///
/// # Foreign keys that refer to the key
///
/// Their columns become `bigint` in the same exchange, with their indexes, defaults and `NOT NULL`. Their tables must belong to
/// the role, and their columns must not be part of another key.
///
/// # What happens to the column
///
/// While the migration runs, the table has a second column: `id_bigint` up to `switch`, and `id_old` from then on. A trigger
/// sets it in every write, also in those of other programs.
#[derive(Debug, Clone)]
pub struct WiderKey(pub(super) Arc<Description>);

/// Describes a [`WiderKey`].
#[derive(Debug, Clone)]
#[must_use = "a description does nothing until it is built"]
pub struct WiderKeyBuilder {
    pool: PgPool,
    table: String,
    column: String,
    batches: BatchOptions,
    throttle: Throttle,
}

/// What the plan changes. Names are those of the catalog, unless they say otherwise.
#[derive(Debug)]
pub(super) struct Description {
    pub(super) outline: Outline,
    /// Quoted.
    pub(super) table: String,
    pub(super) column: String,
    /// The second column before the exchange, and after it.
    pub(super) wide: String,
    pub(super) narrow: String,
    pub(super) recent_look: RecentLook,
}

/// How the names of foreign keys between second columns begin.
pub(super) fn prefix(id: &str) -> String {
    format!("cutover_{id}_fk_")
}

impl WiderKey {
    /// Begins the description: `column` is the primary key of `table`, which may carry its schema. Names are those of the
    /// catalog, so they are case-sensitive.
    ///
    /// `pool` is the pool of the service's database on which the batches run. Its role must have the rights of the table's
    /// owner.
    #[expect(clippy::new_ret_no_self, reason = "it begins a description, which `build` completes")]
    pub fn new(pool: PgPool, table: &str, column: &str) -> WiderKeyBuilder {
        WiderKeyBuilder {
            pool,
            table: table.to_owned(),
            column: column.to_owned(),
            batches: BatchOptions::default(),
            throttle: Throttle::default(),
        }
    }
}

impl WiderKeyBuilder {
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

    /// Checks the description.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with every problem. What only the database knows is checked by the preflight and before `expand`.
    pub fn build(self) -> Result<WiderKey, ConfigError> {
        let mut problems = Vec::new();
        check_table("table", &self.table, &mut problems);
        check_name("column", &self.column, &mut problems);
        if self.column.len() > 54 {
            let problem =
                format!("{:?} is too long: at most 54 letters, because `_bigint` is added", self.column);
            problems.push(Problem::new("column", problem));
        }
        self.batches.check(&mut problems);
        self.throttle.check(&mut problems);
        ConfigError::check(problems)?;
        let Self { pool, table, column, batches, throttle } = self;
        let (table, wide, narrow) =
            (quote_table(&table), format!("{column}_bigint"), format!("{column}_old"));
        let mapping = |column: &str, expression: String| Mapping {
            columns: vec![quote(column)],
            code: MappingCode::Sql(vec![expression]),
            is_object: false,
        };
        let sides = Sides {
            old: table.clone(),
            new: table.clone(),
            forward: mapping(&wide, format!("{}::bigint", quote(&column))),
            // The key itself is never written: a `generated always` key cannot be, and the trigger keeps both equal.
            backward: mapping(&wide, quote(&wide)),
            part: None,
        };
        let key = vec![column.clone()];
        let outline =
            Outline { pool, sides, key, batches, throttle, skips_triggers: false, sensitive: false };
        let recent_look = RecentLook::default();
        Ok(WiderKey(Arc::new(Description { outline, table, column, wide, narrow, recent_look })))
    }
}
