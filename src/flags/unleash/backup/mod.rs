//! The last known state, kept where an instance to come finds it.
//!
//! # The hazard
//!
//! A pod that starts while Unleash is away knows nothing, and a default that is safe in the code's
//! first week sends everybody back to the old path in its tenth. What is kept may itself be half
//! written, of another build, or grown out of all bounds; then defaults count and the log and
//! `cutover_flag_backups_total{result="refused"}` say so.

mod contract;
mod file;
mod postgres;
#[cfg(feature = "redis")]
mod redis;
mod seal;

pub use contract::{Backup, BackupError};
pub use file::FileBackup;
pub use postgres::PostgresBackup;
#[cfg(feature = "redis")]
pub use redis::RedisBackup;
pub(super) use seal::{LARGEST_STATE, open, seal};
