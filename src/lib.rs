#![doc = include_str!("../README.md")]

mod config;
pub mod drain;
pub mod flags;
pub mod fleet;
pub mod front;
pub mod health;
pub mod ledger;
pub mod metrics;
pub mod migration;
pub mod pool;
pub mod preflight;
pub mod release;
#[cfg(feature = "redis")]
pub mod session;

pub use config::{ConfigError, Problem};
pub use cutover_macros::dual_write;
pub use front::{Cutover, Instance, StartError};
