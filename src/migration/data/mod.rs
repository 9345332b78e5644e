//! The two sides of a migration: writing both, reading the right one, and making one complete from the other.
//!
//! # The hazard
//!
//! A dual write that some instances do and others don't loses data without a sound, and so does a backfill
//! that overwrites what was written meanwhile, skips rows because they look filled, or believes that it came
//! to its end. Here the sides of every operation follow from the epoch that it is pinned to, and every batch of
//! long work is a fenced transaction like any other write: it compares instead of looking for gaps, and its
//! checkpoint commits with it.

mod column;
mod ddl;
mod dual;
mod job;
mod key;
mod keyset;
mod mapping;
mod options;
mod pace;
mod repair;
mod rows;
mod sql;
mod sweep;
mod table;
mod table_size;
mod trap;
mod vacuum;

pub use column::{ColumnMigration, ColumnMigrationBuilder};
pub use dual::{Apart, DualWrite, Reading, Reads};
#[doc(hidden)]
pub use dual::{Guard, Writes, made, same};
pub use key::Key;
pub use mapping::{MapRows, each};
pub use options::{BatchOptions, InvalidPlan, Problem};
pub use repair::Repaired;
pub use rows::{Keyed, Rows};
pub use table::{TableMigration, TableMigrationBuilder};
