//! Deploy a service and migrate its Postgres database without downtime and without losing a write.
//!
//! This is the smallest service. It has a public listener, a second one for probes, metrics and `/drain`, and it drains on SIGTERM:
//!
//! ```no_run
//! use axum::{Router, routing::get};
//! use cutover::{Cutover, front::BoxError};
//!
//! #[tokio::main]
//! async fn main() -> std::process::ExitCode {
//!     let service = Cutover::service("payments").postgres_from_env();
//!     service.run(async |_| Ok::<_, BoxError>(Router::new().route("/", get(|| async { "hello" })))).await
//! }
//! ```
//!
//! # Where to start
//!
//! | you want to | read |
//! |---|---|
//! | start a service with all parts | [`Cutover`], and [`front`] for the environment variables that it reads |
//! | move a column or a table | [`ColumnMigration`](migration::ColumnMigration), [`TableMigration`](migration::TableMigration), [`DualWrite`](migration::DualWrite) |
//! | move rows to another database | [`migration::mirror`] |
//! | add a constraint, drop something, or widen a key | [`SchemaChange`](migration::SchemaChange), [`WiderKey`](migration::WiderKey) |
//! | know what a phase writes and reads | [`Phase`](migration::Phase) |
//! | ask for a phase, or see what a migration waits for | [`migration::admin`], or the command `cutover` of package `cutover-cli` |
//! | stop without failing a request | [`drain`] |
//! | decide when an instance gets requests | [`health`] |
//! | share the server's connections among instances | [`pool`] |
//! | switch code paths by a flag | [`flags`] |
//! | keep sessions that two builds share | `session` (cargo feature `redis`) |
//! | test a repository or a router in every phase | [`testing`] |
//! | judge a canary | [`metrics`] |
//! | find what would break a build, before it starts | [`preflight`] |
//!
//! Each module also works without [`Cutover`], which only creates the parts and connects them.
//!
//! The README, and the guide in the folder `docs` of the package, explain concepts, the first migration step by step,
//! operations and limits.
//!
//! # Cargo features
//!
//! | feature | default | what it adds |
//! |---|---|---|
//! | `redis` | | sessions, a health check and a pool on Redis: one server, Sentinel or a cluster, also over TLS (`rediss://`) |
//! | `unleash` | | flags and desired phases from Unleash |
//! | `console` | | a read-only page at `/` of the admin listener that shows the migrations of the service |
//! | `openfeature` | | flags from any OpenFeature provider |
//! | `deadpool` | | fenced transactions and connection shares on `deadpool-postgres` |
//! | `tonic` | | gRPC health |
//! | `lint` | | checks your own SQL statements in a plan with [Squawk](https://squawkhq.com) |

mod config;
#[cfg(feature = "console")]
pub mod console;
pub mod drain;
pub mod flags;
pub mod fleet;
pub mod front;
pub mod health;
pub mod ledger;
pub mod metrics;
pub mod migration;
pub mod pool;
pub mod preflight;
#[cfg(feature = "redis")]
pub mod redis;
pub mod release;
mod scrape;
#[cfg(feature = "redis")]
pub mod session;
pub mod testing;
mod tls;

#[doc(hidden)]
pub use config::postgres_options;
pub use config::{ConfigError, Problem};
#[doc(hidden)]
pub use config::{redact, remember};
pub use cutover_macros::dual_write;
pub use front::{Cutover, Instance, StartError};

/// The code in the README and in the guide, so that the tests compile it.
#[cfg(doctest)]
mod guide {
    macro_rules! pages {
        ($($page:ident: $file:literal,)*) => {
            $(#[doc = include_str!($file)] mod $page {})*
        };
    }
    pages! {
        readme: "../README.md",
        another_database: "../docs/another-database.md",
        both_sides: "../docs/both-sides.md",
        concepts: "../docs/concepts.md",
        configuration: "../docs/configuration.md",
        deploys: "../docs/deploys.md",
        first_migration: "../docs/first-migration.md",
        flags: "../docs/flags.md",
        operations: "../docs/operations.md",
        sessions: "../docs/sessions.md",
        shape_another_type: "../docs/shapes/another-type.md",
        shape_lookup_table: "../docs/shapes/lookup-table.md",
        shape_no_data: "../docs/shapes/no-data.md",
        shape_own_table: "../docs/shapes/own-table.md",
        shape_partitioned: "../docs/shapes/partitioned.md",
        shape_some_rows: "../docs/shapes/some-rows.md",
        shape_wider_key: "../docs/shapes/wider-key.md",
        shape_several_columns: "../docs/shapes/several-columns.md",
        whole_migration: "../docs/whole-migration.md",
    }
}
