//! Flags from an Unleash server.

mod backup;
mod definition;
mod options;
mod poller;
mod report;
mod state;
#[cfg(test)]
mod tests;
mod transport;

#[cfg(feature = "redis")]
pub use backup::RedisBackup;
pub use backup::{Backup, BackupError, FileBackup, PostgresBackup};
pub use options::UnleashOptions;
pub(super) use poller::Poller;
pub(super) use state::Unleash;
