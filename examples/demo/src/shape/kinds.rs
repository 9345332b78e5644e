//! The shapes, and the statements of their sides.

use std::time::Duration;

use cutover::migration::{
    ColumnMigration, MigrationSpec, PhaseRange, SchemaChange, TableMigration, WiderKey,
};
use sqlx::PgPool;

use crate::{failure::Result, ledger::MIGRATION};

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Shape {
    /// A primary key becomes `bigint`, with the columns that refer to it
    Key,
    /// Some rows move to a table of their own
    Split,
    /// Two columns replace one
    Columns,
    /// A column moves to a table of its own
    OwnTable,
    /// A table becomes a partitioned one
    Partitions,
    /// A table gets constraints and loses a column, and no data moves
    Constraints,
}

/// The statements of a side; `$1` is the key and `$2` the value.
pub(super) struct Side {
    pub(super) put: &'static str,
    pub(super) get: &'static str,
}

impl Shape {
    pub(super) fn create(self) -> &'static str {
        match self {
            Self::Key => {
                "create table orders (id integer generated always as identity primary key, note text); \
                 create table lines (id bigserial primary key, order_id integer not null references orders); \
                 create index on lines (order_id); \
                 insert into orders (note) select 'start' from generate_series(1, {rows}); \
                 insert into lines (order_id) select g from generate_series(1, {rows}) g"
            }
            Self::Split => {
                "create table events (id bigint primary key, kind text not null, body text); \
                 insert into events select g, case when g <= 1000 or g % 3 = 0 then 'audit' else 'other' end, 'start' \
                     from generate_series(1, {rows}) g"
            }
            Self::Columns => {
                "create table people (id bigint primary key, full_name text); \
                 insert into people select g, 'start of' from generate_series(1, {rows}) g"
            }
            Self::OwnTable => {
                "create table users (id bigint primary key, name text not null, bio text); \
                 insert into users select g, 'n' || g, 'start' from generate_series(1, {rows}) g"
            }
            Self::Partitions => {
                "create table visits (id bigint primary key, page text); \
                 insert into visits select g, 'start' from generate_series(1, {rows}) g"
            }
            Self::Constraints => {
                "create table customers (id bigint primary key); \
                 create table orders (id bigint primary key, number bigint, customer bigint, note text, legacy text); \
                 insert into customers select generate_series(1, 1000); \
                 insert into orders select g, g, 1 + g % 1000, 'start' from generate_series(1, {rows}) g"
            }
        }
    }

    pub(super) fn spec(self, pool: &PgPool) -> Result<MigrationSpec> {
        let spec = MigrationSpec::new(MIGRATION, PhaseRange::FULL).soak(Duration::ZERO);
        let pool = pool.clone();
        Ok(match self {
            Self::Key => spec.plan(WiderKey::new(pool, "orders", "id").build()?),
            Self::Split => spec.plan(
                TableMigration::new(pool, "events", "audit_events")
                    .create("create table audit_events (id bigint primary key, body text)")
                    .rows_where("kind = 'audit'")
                    .same("body")
                    .column_back("kind", "'audit'")
                    .build()?,
            ),
            Self::Columns => spec.plan(
                ColumnMigration::new(pool, "people")
                    .new_column("first_name", "text", "split_part(full_name, ' ', 1)")
                    .new_column(
                        "last_name",
                        "text",
                        "substr(full_name, length(split_part(full_name, ' ', 1)) + 2)",
                    )
                    .old_column("full_name", "first_name || ' ' || last_name")
                    .mirror_writes()
                    .build()?,
            ),
            Self::OwnTable => spec.plan(
                TableMigration::new(pool, "users", "profiles")
                    .create("create table profiles (id bigint primary key references users on delete cascade, bio text)")
                    .only_columns()
                    .same("bio")
                    .build()?,
            ),
            Self::Partitions => spec.plan(
                TableMigration::new(pool, "visits", "visits_by_key")
                    .create(
                        "create table visits_by_key (id bigint primary key, page text) partition by hash (id)",
                    )
                    .expand_sql(
                        "create table visits_0 partition of visits_by_key for values with (modulus 2, remainder 0)",
                    )
                    .expand_sql(
                        "create table visits_1 partition of visits_by_key for values with (modulus 2, remainder 1)",
                    )
                    .same("page")
                    .build()?,
            ),
            Self::Constraints => spec.plan(
                SchemaChange::new(pool, "orders")
                    .not_null("note")
                    .check("orders_number_positive", "number > 0")
                    .unique("orders_number_key", &["number"])
                    .foreign_key("orders_customer_fkey", &["customer"], "customers (id)")
                    .drop_column("legacy")
                    // As long as the load runs in each phase, so that a person need not wait.
                    .quiet_period(Duration::from_secs(2))
                    .build()?,
            ),
        })
    }

    /// The old and the new side.
    pub(super) fn sides(self) -> [&'static Side; 2] {
        const KEY: Side = Side {
            put: "with line as (insert into lines (order_id) values ($1)) update orders set note = $2 where id = $1::bigint",
            get: "select note from orders where id = $1::bigint",
        };
        const CONSTRAINTS: Side = Side {
            put: "update orders set note = $2 where id = $1",
            get: "select note from orders where id = $1",
        };
        match self {
            Self::Key => [&KEY, &KEY],
            Self::Constraints => [&CONSTRAINTS, &CONSTRAINTS],
            Self::OwnTable => [
                &Side {
                    put: "update users set bio = $2 where id = $1",
                    get: "select bio from users where id = $1",
                },
                &Side {
                    put: "insert into profiles values ($1, $2) on conflict (id) do update set bio = excluded.bio",
                    get: "select bio from profiles where id = $1",
                },
            ],
            Self::Partitions => [
                &Side {
                    put: "update visits set page = $2 where id = $1",
                    get: "select page from visits where id = $1",
                },
                &Side {
                    put: "insert into visits_by_key values ($1, $2) on conflict (id) do update set page = excluded.page",
                    get: "select page from visits_by_key where id = $1",
                },
            ],
            Self::Split => [
                &Side {
                    put: "update events set body = $2 where id = $1 and kind = 'audit'",
                    get: "select body from events where id = $1 and kind = 'audit'",
                },
                &Side {
                    put: "insert into audit_events values ($1, $2) on conflict (id) do update set body = excluded.body",
                    get: "select body from audit_events where id = $1",
                },
            ],
            Self::Columns => [
                &Side {
                    put: "update people set full_name = $2 where id = $1",
                    get: "select full_name from people where id = $1",
                },
                &Side {
                    put: "update people set first_name = split_part($2, ' ', 1), last_name = split_part($2, ' ', 2) where id = $1",
                    get: "select first_name || ' ' || last_name from people where id = $1",
                },
            ],
        }
    }
}
