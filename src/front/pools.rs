//! The pools that the environment asks for.

use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use super::builder::Part;
use super::environment::Environment;
use crate::pool::{ConnectionShare, ShareOptions};

/// Connections of a pool when nobody says how many.
const SIZE: u32 = 10;
/// How long a request waits for a connection.
pub(super) const WAIT: Duration = Duration::from_secs(5);
/// How long a connection lives: a changed DNS record is followed after this.
const LIFETIME: Duration = Duration::from_secs(30 * 60);

/// A pool, and the share of the server's connections that it is to be held to: somebody's own pool has none.
pub(super) struct Postgres {
    pub(super) pool: PgPool,
    pub(super) share: Option<(String, ShareOptions)>,
}

pub(super) fn postgres(part: Part<PgPool>, service: &str, environment: &mut Environment) -> Option<Postgres> {
    match part {
        Part::Out => return None,
        Part::Own(pool) => return Some(Postgres { pool, share: None }),
        Part::FromEnvironment => {}
    }
    let size = size(environment);
    let options = required("DATABASE_URL", &["postgres://", "postgresql://"], environment)?
        .parse::<PgConnectOptions>()
        // Not the address itself: it may hold a password.
        .map_err(|error| environment.problems.push(format!("DATABASE_URL: can't be read: {error}")))
        .ok()?;
    let pool = PgPoolOptions::new().max_connections(size).acquire_timeout(WAIT).max_lifetime(LIFETIME);
    let name = ConnectionShare::new_name(service);
    let pool = pool.connect_lazy_with(options.application_name(&name));
    Some(Postgres {
        pool,
        share: Some((name, ShareOptions { max_connections: size, ..ShareOptions::default() })),
    })
}

#[cfg(feature = "redis")]
pub(super) fn redis(
    part: Part<deadpool_redis::Pool>,
    environment: &mut Environment,
) -> Option<deadpool_redis::Pool> {
    match part {
        Part::Out => return None,
        Part::Own(pool) => return Some(pool),
        Part::FromEnvironment => {}
    }
    let size = size(environment);
    let url = required("REDIS_URL", &["redis://", "rediss://", "redis+unix://", "unix://"], environment)?;
    let made = deadpool_redis::Manager::new(url).map_err(|error| error.to_string()).and_then(|manager| {
        deadpool_redis::Pool::builder(manager)
            .max_size(size as usize)
            .wait_timeout(Some(WAIT))
            .create_timeout(Some(WAIT))
            .recycle_timeout(Some(WAIT))
            .runtime(deadpool_redis::Runtime::Tokio1)
            .build()
            .map_err(|error| error.to_string())
    });
    made.map_err(|error| environment.problems.push(format!("REDIS_URL: can't be used: {error}"))).ok()
}

fn size(environment: &mut Environment) -> u32 {
    match environment.value("CUTOVER_POOL_SIZE", "number of connections", "10") {
        Some(0) => {
            environment.problems.push("CUTOVER_POOL_SIZE: 0 connections serve nobody; use 1 or more".into());
            SIZE
        }
        size => size.unwrap_or(SIZE),
    }
}

fn required(name: &'static str, schemes: &[&str], environment: &mut Environment) -> Option<String> {
    let problems = environment.problems.len();
    let Some(url) = environment.text(name) else {
        if environment.problems.len() == problems {
            environment.problems.push(format!("{name}: is not set; it looks like {}host", schemes[0]));
        }
        return None;
    };
    if schemes.iter().any(|scheme| url.starts_with(scheme)) {
        return Some(url);
    }
    environment.problems.push(format!("{name}: has to begin with {}", schemes.join(" or ")));
    None
}
