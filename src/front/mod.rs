//! One builder that composes all parts of the library for an ordinary service.
//!
//! Every part can also be used alone: this module only creates the parts and connects them. Besides
//! [`release`](crate::release) it is the only module that reads the environment:
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `LISTEN_ADDR` | address of the public listener | `[::]:8080`: IPv6 and IPv4, or IPv4 alone on a host without IPv6 |
//! | `ADMIN_ADDR` | address of the listener for probes, metrics and `/drain` | `[::]:9090` |
//! | `DATABASE_URL` | Postgres, for [`Cutover::postgres_from_env`] | |
//! | `REDIS_URL` | Redis, for `Cutover::redis_from_env` | |
//! | `CUTOVER_UNNAMED_STATEMENTS` | `true`: see [`Cutover::unnamed_statements`] | `false` |
//! | `CUTOVER_POOL_SIZE` | connections of each of these two pools, 1 to 1000; the Postgres pool may get fewer while a deploy shares them | 10 |
//! | `CUTOVER_GRACE_SECONDS` | the pod's `terminationGracePeriodSeconds` | 30 |
//! | `CUTOVER_PROPAGATION_SECONDS` | how long endpoints take to propagate | 5 |
//! | `CUTOVER_DRAIN_SECRET` | allows `/drain` from other hosts, see [`Drain::router`](crate::drain::Drain::router) | none |
//! | `UNLEASH_INTERVAL_SECONDS` | time between two polls of the instance that polls for the fleet | 1 |
//! | `UNLEASH_DIRECT_INTERVAL_SECONDS` | time between two polls of the others | 15 |
//! | `UNLEASH_URL`, `UNLEASH_TOKEN` | the flag server and its backend token | none: the default in code applies to every flag |
//! | `CUTOVER_VERSION`, `CUTOVER_REVISION`, `CUTOVER_INSTANCE` | see [`Release::from_env`](crate::release::Release::from_env) | |
//! | `CUTOVER_PREFLIGHT` | `1` or `json`: report what would break, and start nothing; see [`Cutover::run`] | `0` |
//!
//! A value that is set in code takes precedence. An unknown name that begins with `CUTOVER_`, or that looks like a
//! misspelled name of this table, is refused, because the setting would silently keep its default. The gauge
//! `cutover_config_info` has a fingerprint of the whole configuration, so that a pod with another configuration is visible.
//!
//! # Defaults and reasons
//!
//! Probes, metrics and `/drain` have a listener of their own, because everything on the public one is public. The pool has
//! 10 connections, the default of sqlx. The grace period is 30 s, the default of Kubernetes, and propagation 5 s, see
//! [`drain`](crate::drain). Leases, checks, flags and sessions have the defaults of their modules. No part is required. A
//! part that is not added is not created and costs nothing.

mod admin;
mod assembly;
mod bind;
mod builder;
mod declare;
mod desired;
mod environment;
mod error;
mod instance;
#[cfg(feature = "unleash")]
mod kept;
mod pools;
#[cfg(test)]
mod secret_tests;
mod spans;
mod start;
mod startup;

pub use builder::Cutover;
pub use declare::IntoSpec;
pub use environment::Output;
pub use error::{BoxError, NotConfigured, StartError};
pub use instance::Instance;
