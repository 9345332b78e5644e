//! The readiness of this instance, and the reasons why it is not ready.
//!
//! **Hazard.** A probe that waits in the service's own connection queue reports a busy database as dead, and all
//! instances leave the load balancer at once. A probe that runs inside the kubelet's request hangs with its dependency.
//! A probe that flaps on one lost packet turns a hiccup into an outage. A build that never reached its database goes
//! live because nothing checked. Here probes run in the background, on connections of their own, one at a time, each
//! under a time limit. A change of status needs several failures *and* some time. A dependency that was never reached
//! blocks readiness. One that was reached and then lost is reported, and makes the instance unready only where its
//! [`Criticality`] says so.
//!
//! One state is behind everything: [`Health::is_ready`] (one atomic load), [`Health::changes`],
//! [`Health::status_changes`], the pages of [`Health::router`], and `Health::grpc` (cargo feature `tonic`).
//!
//! # Defaults and reasons
//!
//! | setting | default | reason |
//! |---|---|---|
//! | [`interval`](Check::interval) | 5 s | the load on a dependency depends on the number of pods, not on how often the kubelet asks; at most 1 s before the first pass, so that a start does not wait |
//! | [`time_limit`](Check::time_limit) | 2 s | a dependency that is slower cannot serve requests either |
//! | [`failing_after`](Check::failing_after) | 3 in a row, and 10 s | a lost packet, a failover or a restart should not reach the load balancer |
//! | [`passing_after`](Check::passing_after) | 1 | a dependency that works again should be used |
//! | [`criticality`](Check::criticality) | [`Degrades`](Criticality::Degrades) | a shared dependency would make all pods unready at once, including those that can do without it |

mod check;
mod component;
#[cfg(feature = "deadpool")]
mod deadpool;
#[cfg(feature = "tonic")]
mod grpc;
mod handle;
mod http;
mod metrics;
mod one_line;
mod pages;
mod postgres;
#[cfg(feature = "redis")]
mod redis;
mod runner;
mod shared;

pub use check::{Check, CheckError, ProbeOutcome};
pub use component::{Criticality, Status, StatusChange};
#[cfg(feature = "tonic")]
pub use grpc::GrpcHealth;
pub use handle::{Health, Latch, Signal};

#[cfg(test)]
mod tests;
