//! Descriptions of migrations within one database: of a column, of a table, and of a change that moves no data.
//!
//! # The hazard
//!
//! If some instances write both sides and others do not, writes are lost without an error. The same happens if a backfill
//! overwrites what was written meanwhile, skips rows that seem to be filled already, or counts as complete when it is not. So
//! the epoch of an operation decides which sides it writes, and every batch is a fenced transaction like any other
//! write: it compares values instead of looking for nulls, and its checkpoint commits with it.
//!
//! # Defaults and reasons
//!
//! | option | default | because |
//! |---|---|---|
//! | [`target`](super::BatchOptions::target) | 75 ms | a writer may wait this long for a row of a batch; shorter batches spend their time on round trips |
//! | [`min_rows`](super::BatchOptions::min_rows), [`max_rows`](super::BatchOptions::max_rows) | 500, 20,000 | a smaller batch spends most of its time on the commit; a larger one delays vacuum and standbys |
//! | [`ranges`](super::BatchOptions::ranges), [`workers`](super::BatchOptions::workers) | 4, 1 | the server's writes limit the work: more batches at once would slow requests down and hardly shorten the work |
//! | [`foreground`](super::Throttle::foreground) | 1.2 | a 99th percentile that is 20 % higher is hardly noticed, and most of the machine is left for the work |
//! | [`standby_lag`](super::Throttle::standby_lag), [`lock_waits`](super::Throttle::lock_waits) | 64 MB, 10 sessions | these are the first effects of a backfill on others: readers of standbys see old data, writers queue |
//! | [`bad_rows`](super::BatchOptions::bad_rows) | 100 | a few odd rows are listed at once; more than that is a wrong mapping |

mod attached;
mod attached_trial;
mod before_move;
mod before_work;
mod builder;
mod changes;
mod columns;
mod contract;
mod description;
mod expand;
mod files;
mod inspection;
mod key_remedy;
#[cfg(feature = "lint")]
mod lint;
mod new_type;
mod partial;
mod readers;
mod recent_look;
mod refusal;
mod replication;
mod rights;
mod round_trip;
mod schema_change;
mod sql_migration;
mod statements;
mod tables;
mod two_tables;
mod unguarded;
mod wider_key;

pub use builder::SqlMigrationBuilder;
pub use columns::{Column, ColumnMigration, ColumnMigrationBuilder};
pub use schema_change::{SchemaChange, SchemaChangeBuilder};
pub use sql_migration::SqlMigration;
pub use tables::{Table, TableMigration, TableMigrationBuilder};
pub use wider_key::{WiderKey, WiderKeyBuilder};
