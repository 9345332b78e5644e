//! The pools that the environment configures.

use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use super::builder::Part;
use super::environment::Environment;
#[cfg(feature = "redis")]
use crate::redis::RedisPool;
use crate::pool::{ConnectionShare, MAX_CONNECTIONS, ShareOptions};

/// The default of `CUTOVER_POOL_SIZE`.
const SIZE: u32 = 10;
/// How long a request waits for a connection.
pub(super) const WAIT: Duration = Duration::from_secs(5);
/// How long a connection lives. A changed DNS record is followed after this time.
const LIFETIME: Duration = Duration::from_secs(30 * 60);

/// A pool, and the share of the server's connections that limits it. A service's own pool has no share.
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
        // Not the address itself, which may contain a password.
        .map_err(|error| environment.problem("DATABASE_URL", format!("could not be parsed: {error}")))
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
    part: Part<RedisPool>,
    environment: &mut Environment,
) -> Option<RedisPool> {
    match part {
        Part::Out => return None,
        Part::Own(pool) => return Some(pool),
        Part::FromEnvironment => {}
    }
    let size = size(environment);
    let url = required("REDIS_URL", &["redis://", "rediss://", "redis+unix://", "unix://"], environment)?;
    if let Some(problem) = url.strip_prefix("rediss://").and_then(|_| redis_over_tls()) {
        environment.problem("REDIS_URL", problem);
        return None;
    }
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
    made.map(RedisPool::from).map_err(|error| environment.problem("REDIS_URL", format!("can't be used: {error}"))).ok()
}

/// Prepares for `rediss`, or says why this build cannot use it.
#[cfg(feature = "redis")]
fn redis_over_tls() -> Option<&'static str> {
    #[cfg(all(feature = "_rustls", feature = "tls-native"))]
    // Redis's client then verifies by rustls and does not load root certificates.
    return Some(
        "uses TLS, and with `tls-native` beside `tls-ring` or `tls-aws-lc` no certificate would be trusted; \
         enable only one of these features of crate cutover",
    );
    #[cfg(all(feature = "_rustls", not(feature = "tls-native")))]
    crate::tls::ensure_default_provider();
    // Without any of the features, the service's own dependency on redis may have TLS; its client says if not.
    #[cfg(not(all(feature = "_rustls", feature = "tls-native")))]
    None
}

fn size(environment: &mut Environment) -> u32 {
    const NAME: &str = "CUTOVER_POOL_SIZE";
    let Some(text) = environment.text(NAME) else { return SIZE };
    match text.parse() {
        Ok(size) if (1..=MAX_CONNECTIONS).contains(&size) => return size,
        Ok(_) => environment.problem(NAME, format!("{text} is out of range; use 1 to {MAX_CONNECTIONS}")),
        Err(_) => {
            let problem = format!("{text:?} is not a number of connections; use 1 to {MAX_CONNECTIONS}");
            environment.problem(NAME, problem);
        }
    }
    SIZE
}

fn required(name: &'static str, schemes: &[&str], environment: &mut Environment) -> Option<String> {
    let problems = environment.problems.len();
    let Some(url) = environment.text(name) else {
        if environment.problems.len() == problems {
            environment.problem(name, format!("is not set; use for example {}host", schemes[0]));
        }
        return None;
    };
    let Some(rest) = schemes.iter().find_map(|scheme| url.strip_prefix(scheme)) else {
        environment.problem(name, format!("has to begin with {}", schemes.join(" or ")));
        return None;
    };
    match address_problem(rest) {
        None => Some(url),
        Some(problem) => {
            environment.problem(name, problem);
            None
        }
    }
}

/// What is wrong with an address, without any part of it: a password with `/`, `?` or `#` ends the host too early, and
/// the rest of it would be logged as part of a path.
fn address_problem(rest: &str) -> Option<&'static str> {
    let (authority, after) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (path, query) = after.split_once('?').unwrap_or((after, ""));
    let before_at = query.split_once('@').map(|(before, _)| before);
    if path.contains('@') || before_at.is_some_and(|before| !before.contains('=')) {
        return Some("has a user or password with / ? or #; write %2F, %3F or %23 instead");
    }
    if authority.rsplit('@').next().is_some_and(|host| host.contains(',')) {
        return Some("names several hosts; use one, such as a DNS name that follows the primary");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_would_be_misread_is_refused() {
        for good in
            ["u:p@db/x", "db", "/var/run/redis.sock", "db/x?user=me@server", "u:p%2Fq@[::1]:5432/x?a=b"]
        {
            assert_eq!(address_problem(good), None, "{good}");
        }
        for password in ["12/34", "12?34", "12#34", "a/b?c"] {
            let problem = address_problem(&format!("u:{password}@db/x")).unwrap();
            assert!(problem.contains("%2F") && !problem.contains("12"), "{password}: {problem}");
        }
        assert!(address_problem("u:p@db1,db2/x").unwrap().contains("several hosts"));
    }

    #[test]
    fn a_pool_size_out_of_range_is_refused_with_the_range() {
        let of = |text: &str| {
            let mut environment = Environment::of([("CUTOVER_POOL_SIZE", text)]);
            let size = size(&mut environment);
            (size, environment.problems.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(of("1000"), (1000, vec![]));
        for text in ["0", "1001", "4294967295"] {
            assert_eq!(of(text).1, [format!("CUTOVER_POOL_SIZE: {text} is out of range; use 1 to 1000")]);
        }
        for text in ["4294967296", "-1", "many"] {
            assert!(of(text).1[0].contains("use 1 to 1000"), "{text}");
        }
    }
}
