//! Redis as the library uses it: one server, a primary behind Sentinel, or a cluster.
//!
//! [`RedisPool`] is what the parts of the library that use Redis accept. A pool of `deadpool-redis` converts into it.
//!
//! **Hazards** that this module removes:
//!
//! - After a failover, connections to the former primary stay open, and every write on them is refused. Such a connection and
//!   the idle ones of the pool are closed, and the command runs on a new one.
//! - A server that loads its data, or a cluster that elects a primary, refuses commands for a moment. A refused command did not
//!   run, so it is repeated within the time limit of its caller.

mod client;
mod pool;
mod refusal;

pub(crate) use client::{Client, Failure};
pub(crate) use pool::AnyConnection;
pub use pool::RedisPool;
pub(crate) use refusal::{describe, is_missing_privilege};
