//! Flags from an Unleash server.

mod backup;
#[cfg(test)]
mod backup_tests;
mod client;
mod custom;
mod definition;
mod fleet;
mod fleet_polling;
#[cfg(test)]
mod hostile_tests;
mod http_client;
mod options;
#[cfg(test)]
mod poll_tests;
mod poller;
mod report;
#[cfg(test)]
mod report_tests;
mod secure;
mod server;
mod shape;
mod state;
#[cfg(test)]
mod test_server;
mod transport;
#[cfg(test)]
mod transport_tests;

#[cfg(feature = "redis")]
pub use backup::RedisBackup;
pub use backup::{Backup, BackupError, FileBackup, PostgresBackup};
pub(super) use client::{AppClient, source as client_source};
pub use custom::CustomStrategy;
pub use fleet_polling::FleetPolling;
pub use options::UnleashOptions;
pub(super) use poller::Poller;
pub(super) use state::Unleash;
