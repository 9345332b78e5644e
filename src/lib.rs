//! Deploy a service and migrate its database without downtime.

pub mod flags;
