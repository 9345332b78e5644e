//! The front door: one builder that composes all rooms for the ordinary service.
//!
//! Every part also stands alone; nothing here does more than make them and put them together. It is the only
//! room besides [`release`](crate::release) that reads the environment:
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `LISTEN_ADDR` | address of the public listener | `0.0.0.0:8080` |
//! | `ADMIN_ADDR` | address of the listener for probes, metrics and `/drain` | `0.0.0.0:9090` |
//! | `DATABASE_URL` | Postgres, for [`Cutover::postgres_from_env`] | |
//! | `REDIS_URL` | Redis, for `Cutover::redis_from_env` | |
//! | `CUTOVER_POOL_SIZE` | connections of each of those two pools; Postgres's may be fewer while a deploy shares them out | 10 |
//! | `CUTOVER_GRACE_SECONDS` | the pod's `terminationGracePeriodSeconds` | 30 |
//! | `CUTOVER_PROPAGATION_SECONDS` | how long endpoints take to propagate | 5 |
//! | `UNLEASH_URL`, `UNLEASH_TOKEN` | the flag server and a backend token of it | none: every flag has its default |
//! | `CUTOVER_VERSION`, `CUTOVER_REVISION`, `CUTOVER_INSTANCE` | see [`Release::from_env`](crate::release::Release::from_env) | |
//! | `CUTOVER_PREFLIGHT` | `1` or `json`: look at what would break, start nothing; see [`Cutover::run`] | `0` |
//!
//! What is set in code comes before the environment. A name that begins with `CUTOVER_` and is none of these, or is
//! one of these but for a slip, is refused, because what it was to set would silently stay as it was. The gauge
//! `cutover_config_info` carries a fingerprint of it all, so that a pod that is configured in another way stands out.
//!
//! # Defaults, and why
//!
//! Probes, metrics and `/drain` are on a listener of their own, because what is on the public one is public. The pool has
//! 10 connections, sqlx's own number. The grace period is Kubernetes' 30 s and propagation 5 s, see
//! [`drain`](crate::drain); leases, checks, flags and sessions have the defaults of their rooms. Nothing is required:
//! a part that is not named is not there, and takes nothing.

mod admin;
mod assembly;
mod builder;
mod declare;
mod desired;
mod environment;
mod error;
mod instance;
#[cfg(feature = "unleash")]
mod kept;
mod pools;
mod spans;
mod start;
mod startup;

pub use builder::Cutover;
pub use declare::IntoSpec;
pub use environment::Output;
pub use error::{BoxError, NotConfigured, StartError};
pub use instance::Instance;
