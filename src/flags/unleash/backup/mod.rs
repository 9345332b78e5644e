//! The last known state, stored where a new instance finds it.
//!
//! **Hazard.** A pod that starts while Unleash is unreachable knows no flags. A default that is safe in the first week
//! of a feature sends all users back to the old path in the tenth. The stored state may itself be truncated, written by
//! another build, or too large. Then the declared defaults apply, and the log and
//! `cutover_flag_backups_total{result="refused"}` show it.

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
