//! Throwaway real servers for tests: Postgres, Redis, Unleash, Envoy, Prometheus, PgBouncer.
//!
//! Each type starts the real server on a free loopback port and waits until it answers. The server and its folder are
//! removed when the value is dropped, and also when the test process is killed (see [`Folder`]). Programs come from the
//! machine, or from `.cache` of the repository, where `scripts/servers` puts the missing ones.
//!
//! The kit does not depend on the library that it tests.

mod base_backup;
mod dump;
mod envoy;
mod error;
mod find;
mod grpc;
mod http;
mod load;
mod pgbench;
mod pgbouncer;
mod picture;
mod postgres;
mod process;
mod program;
mod prometheus;
mod proxy;
mod redis;
mod redis_groups;
mod rolling;
mod unleash;
mod unleash_admin;
mod wait;

pub use dump::{Dump, copy_by_dump};
pub use envoy::{Cluster, Endpoint, Envoy, EnvoyOptions};
pub use error::{KitError, if_installed};
pub use find::{browser, manifests, specification};
pub use grpc::{GrpcEnding, GrpcEndings};
pub use load::{Load, Shot};
pub use pgbench::PgBench;
pub use pgbouncer::{PgBouncer, PgBouncerOptions};
pub use picture::{picture, widened};
pub use postgres::{Postgres, PostgresOptions};
pub use process::{Folder, Process, Signal};
pub use program::program;
pub use prometheus::{Prometheus, PrometheusOptions, Sample};
pub use proxy::Proxy;
pub use redis::Redis;
pub use redis_groups::{RedisCluster, RedisSentinel};
pub use rolling::{Replaceable, put_behind, rolling_restarts};
pub use unleash::Unleash;
pub use unleash_admin::UnleashAdmin;
pub use wait::{free_port, wait_until};
