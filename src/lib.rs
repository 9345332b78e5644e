//! Deploy a service and migrate its database without downtime.

pub mod flags;
#[cfg(feature = "redis")]
pub mod session;
