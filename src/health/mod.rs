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
//!
//! # Defaults, and why
//!
//! | setting | default | because |
//! |---|---|---|
//! | [`interval`](Check::interval) | 5 s | a dependency's load from probes is that of the pods, not of the kubelet's questions; at most 1 s before the first success, so that a start does not wait |
//! | [`time_limit`](Check::time_limit) | 2 s | slower than that no request is served either |
//! | [`failing_after`](Check::failing_after) | 3 in a row, and 10 s | a lost packet, a failover and a restart are none of a load balancer's business |
//! | [`passing_after`](Check::passing_after) | 1 | what works again shall be used |
//! | [`criticality`](Check::criticality) | [`Degrades`](Criticality::Degrades) | a dependency that all pods share takes all of them out at once, and then nobody serves what could do without it |

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

pub use check::{Check, CheckError, ProbeOutcome};
pub use component::{Criticality, Status, StatusChange};
pub use error::HealthError;
#[cfg(feature = "tonic")]
pub use grpc::GrpcHealth;
pub use handle::{Health, Latch, Signal};

#[cfg(test)]
mod tests;
