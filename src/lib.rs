//! Deploy a service and migrate its database without downtime.

pub mod fleet;
pub mod health;
pub mod metrics;
pub mod migration;
pub mod release;
