//! One change of where data lives, agreed on by the whole fleet and enforced by Postgres.
//!
//! # The hazard
//!
//! While a migration runs, several builds and instances work on the same rows. If one instance still reads the old side when
//! another has stopped writing it, the reader sees stale data. If one instance still writes only the old side after the copy
//! has passed a row, its write is lost.
//!
//! Every operation therefore runs at an *epoch*, the number of a phase change. The ledger opens the next epoch only when every
//! live instance has acknowledged the current one, that is, when none of its operations at an older epoch is still running.
//! The database itself refuses a write transaction whose epoch is closed.
//!
//! # What to use
//!
//! - [`ColumnMigration`] or [`TableMigration`] describes a migration within one database, [`mirror`] one to another database.
//! - [`SchemaChange`] describes a change of the schema that moves no data: a constraint is added, or something is dropped.
//!   [`WiderKey`] makes an `integer` key a `bigint`.
//! - [`MigrationSpec`] declares any of these in a build, with the phases that the build can run ([`PhaseRange`]).
//! - [`Migration`] is the handle at run time: [`Migration::begin`] begins a transaction at the current epoch. [`Migrations`]
//!   begins one that writes under several migrations.
//! - [`DualWrite`] combines two repositories, one for each side, behind the interface of one. [`Shadow`] compares what requests
//!   read.
//! - [`admin`] has the commands and reports that the command line `cutover` uses.

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
pub use catalog::{OldSide, PlanProblem};
pub(crate) use coordinator::check as check_specs;
pub use coordinator::{
    Agent, DesiredPhase, DriverOptions, FromLedger, MigrationSpec, Plan, PlanError, SidesPresent,
};
pub use dual::{
    Compared, DualWrite, Keyed, Reading, Reads, Repaired, RepositoryError, Rows, Separate, Shadow,
    ShadowOptions,
};
#[doc(hidden)]
pub use dual::{Guard, Writes, check_same_key, explain_duplicate, inserted_key};
pub use phase::{Desired, Phase, PhaseRange, SchemaState, Side, Target, Task};
pub use plan::{
    Column, ColumnMigration, ColumnMigrationBuilder, SchemaChange, SchemaChangeBuilder, SqlMigration,
    SqlMigrationBuilder, Table, TableMigration, TableMigrationBuilder, WiderKey, WiderKeyBuilder,
};
#[cfg(feature = "deadpool")]
pub use runtime::DeadpoolTx;
pub use runtime::{
    AtPhase, Error, FencedPool, FencedTransaction, Isolation, Key, Migration, Migrations, Pin, PinnedTx,
    SideColumns, SqlxTx, is_retryable,
};
#[doc(hidden)]
pub use runtime::{CallTimer, MirroredColumns, SideCall};
