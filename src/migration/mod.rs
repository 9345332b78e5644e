//! One change of where data lives, agreed on by the whole fleet and enforced by Postgres.
//!
//! # The hazard
//!
//! While a migration runs, builds and instances that write one side, both, or the other work on the same rows.
//! If one of them still reads the old side when another has stopped writing it, the reader sees stale data;
//! if one still writes only the old side after the copy was made, its write is lost. Every instance therefore
//! works at an *epoch* that the ledger gives out; the next one is opened only when every live instance has
//! said that nothing of an older one is running in it any more, and a write transaction at a closed epoch is
//! refused by the database itself.

pub mod admin;
mod batch;
mod catalog;
mod coordinator;
mod dual;
pub mod mirror;
pub mod phase;
mod plan;
mod runtime;
mod schema;

pub use batch::{BatchOptions, MapRows, MappedValue, Throttle, map_each};
pub use catalog::OldSide;
pub use coordinator::{Agent, DesiredPhase, DriverOptions, FromLedger, MigrationSpec, Plan, PlanError};
pub use dual::{
    Compared, DualWrite, Key, Keyed, Reading, Reads, Repaired, Rows, Separate, Shadow, ShadowOptions,
};
#[doc(hidden)]
pub use dual::{Guard, Writes, check_same_key, inserted_key};
pub use phase::{Desired, Facts, Phase, PhaseRange, Side, Target, Task};
pub use plan::{ColumnMigration, ColumnMigrationBuilder, TableMigration, TableMigrationBuilder};
#[cfg(feature = "deadpool")]
pub use runtime::DeadpoolTx;
pub use runtime::{
    Error, FencedPool, FencedTransaction, Isolation, Migration, Pin, PinnedTx, SqlxTx, is_retryable,
};
