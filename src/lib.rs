//! Deploy a service and migrate its database without downtime.

pub mod drain;
pub mod fleet;
pub mod flags;
pub mod health;
pub mod metrics;
pub mod migration;
pub mod release;
#[cfg(feature = "redis")]
pub mod session;
