//! Deploy a service and migrate its database without downtime.

pub mod drain;
pub mod health;
pub mod metrics;
pub mod release;
