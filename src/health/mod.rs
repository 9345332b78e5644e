//! Whether this instance should get requests, and what is wrong if it should not.
//!
//! **Hazard.** A probe that waits in the service's own connection queue calls a busy
//! database dead, and every instance leaves the load balancer at once; a probe that runs
//! inside the kubelet's request hangs with its dependency; one that flaps on a single lost
//! packet turns a hiccup into an outage; and a build that never reached its database goes
//! live because nobody asked. Here probes run in the background on connections of their
//! own, one at a time, each under a time limit; a change of state needs several failures
//! *and* some time; a dependency that was never reached blocks readiness, one that was
//! reached and lost is reported, and takes the instance out only where that was asked for
//! ([`Criticality`]).
//!
//! One state stands behind everything: [`Health::is_ready`] (one atomic load),
//! [`Health::changes`], [`Health::status_changes`], the pages of [`Health::router`], and (with
//! cargo feature `tonic`) `Health::grpc`.

mod check;
mod component;
#[cfg(feature = "deadpool")]
mod deadpool;
mod error;
#[cfg(feature = "tonic")]
mod grpc;
mod handle;
mod http;
mod pages;
mod postgres;
mod redact;
#[cfg(feature = "redis")]
mod redis;
mod runner;

pub use check::{Check, CheckError, Observed};
pub use component::{Criticality, Status, StatusChange};
pub use error::HealthError;
#[cfg(feature = "tonic")]
pub use grpc::GrpcHealth;
pub use handle::{Health, Latch, Signal};

#[cfg(test)]
mod tests;
