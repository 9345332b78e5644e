//! Throwaway real servers for tests: Postgres, Redis, Unleash, Envoy, Prometheus, PgBouncer.
//!
//! Nothing here is a stand-in: each type starts the real server on a free loopback port, waits
//! until it answers, and takes it away again, with its folder, when it is dropped or the test
//! process ends in whatever way (see [`Folder`]). Programs are looked for on the machine and then
//! in `.cache` of the repository, where `scripts/servers` puts what is missing.
//!
//! The kit does not depend on the library it helps to test.

mod error;
mod find;
mod postgres;
mod process;
mod redis;
mod wait;

pub use error::KitError;
pub use postgres::{Postgres, PostgresOptions};
pub use process::{Folder, Process, Signal};
pub use redis::Redis;
pub use wait::{free_port, wait_until};
