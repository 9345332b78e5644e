//! The two sides of a migration: writing both, reading the right one, and making one complete from the other.
//!
//! # The hazard
//!
//! A dual write that some instances do and others don't loses data without a sound, and so does a backfill
//! that overwrites what was written meanwhile, skips rows because they look filled, or believes that it came
//! to its end. Here the sides of every operation follow from the epoch that it is pinned to, and every batch of
//! long work is a fenced transaction like any other write: it compares instead of looking for gaps, and its
//! checkpoint commits with it.
//!
//! # Defaults, and why
//!
//! | option | default | because |
//! |---|---|---|
//! | [`target`](BatchOptions::target) | 75 ms | how long a writer may wait for a row of a batch; shorter ones spend their time on round trips |
//! | [`min_rows`](BatchOptions::min_rows), [`max_rows`](BatchOptions::max_rows) | 500, 20,000 | below, a batch is mostly its commit; above, a single one holds vacuum and standbys up |
//! | [`ranges`](BatchOptions::ranges), [`workers`](BatchOptions::workers) | 4, 1 | the work is bound by the server's writes: more at once are felt by requests sooner than they end earlier |
//! | [`standby_lag`](Throttle::standby_lag), [`lock_waits`](Throttle::lock_waits) | 64 MB, 10 sessions | what a backfill does to others first: readers on standbys see old data, writers queue |
//! | [`bad_rows`](BatchOptions::bad_rows) | 100 | a few odd rows are listed at once; more are a wrong mapping |

mod changes;
mod column;
mod column_steps;
#[cfg(feature = "lint")]
mod lint;
mod table;

pub use column::{ColumnMigration, ColumnMigrationBuilder};
pub use table::{TableMigration, TableMigrationBuilder};
