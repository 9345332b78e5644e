//! The pools that the environment configures.

use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

use super::builder::Part;
use super::environment::{Environment, shown};
use crate::config::postgres_options;
#[cfg(feature = "redis")]
use crate::config::{AddressProblem, address_problem, remember_encoded, without_scheme};
use crate::pool::{ConnectionShare, MAX_CONNECTIONS, ShareOptions};
#[cfg(feature = "redis")]
use crate::redis::RedisPool;

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
    let options = required("DATABASE_URL", "postgres://", environment)?;
    let options = postgres_options(&options);
    let options = options.map_err(|problem| environment.problem("DATABASE_URL", problem)).ok()?;
    let pool = PgPoolOptions::new().max_connections(size).acquire_timeout(WAIT).max_lifetime(LIFETIME);
    let name = ConnectionShare::new_name(service);
    let pool = pool.connect_lazy_with(options.application_name(&name));
    Some(Postgres {
        pool,
        share: Some((name, ShareOptions { max_connections: size, ..ShareOptions::default() })),
    })
}

#[cfg(feature = "redis")]
pub(super) fn redis(part: Part<RedisPool>, environment: &mut Environment) -> Option<RedisPool> {
    match part {
        Part::Out => return None,
        Part::Own(pool) => return Some(pool),
        Part::FromEnvironment => {}
    }
    let size = size(environment);
    let url = required("REDIS_URL", "redis://", environment)?;
    if let Some(password) = redis_password(&url) {
        remember_encoded(password);
    }
    if let Some(problem) = redis_problem(&url) {
        environment.problem("REDIS_URL", problem);
        return None;
    }
    if let Some(problem) = url.strip_prefix("rediss://").and_then(|_| redis_over_tls()) {
        environment.problem("REDIS_URL", problem);
        return None;
    }
    redis_pool(&url, size, LIFETIME)
        .map(RedisPool::from)
        .map_err(|error| environment.problem("REDIS_URL", format!("can't be used: {error}")))
        .ok()
}

#[cfg(feature = "redis")]
fn redis_pool(url: &str, size: u32, lifetime: Duration) -> Result<deadpool_redis::Pool, String> {
    let manager = deadpool_redis::Manager::new(url).map_err(|error| error.to_string())?;
    let is_young = move |age: Duration| match age < lifetime {
        true => Ok(()),
        false => Err(deadpool_redis::HookError::message("the connection has reached its lifetime")),
    };
    deadpool_redis::Pool::builder(manager)
        .max_size(size as usize)
        .wait_timeout(Some(WAIT))
        .create_timeout(Some(WAIT))
        .recycle_timeout(Some(WAIT))
        .pre_recycle(deadpool_redis::Hook::sync_fn(move |_, metrics| is_young(metrics.age())))
        .runtime(deadpool_redis::Runtime::Tokio1)
        .build()
        .map_err(|error| error.to_string())
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
            let problem =
                format!("{} is not a number of connections; use 1 to {MAX_CONNECTIONS}", shown(&text));
            environment.problem(NAME, problem);
        }
    }
    SIZE
}

fn required(name: &'static str, scheme: &str, environment: &mut Environment) -> Option<String> {
    let problems = environment.problems.len();
    let url = environment.text(name);
    if url.is_none() && environment.problems.len() == problems {
        environment.problem(name, format!("is not set; use for example {scheme}host"));
    }
    url
}

#[cfg(feature = "redis")]
fn redis_password(url: &str) -> Option<&str> {
    let (userinfo, _) = url.split_once("://")?.1.rsplit_once('@')?;
    userinfo.split_once(':').map(|(_, password)| password)
}

/// What is wrong with an address of Redis, without any part of it.
#[cfg(feature = "redis")]
fn redis_problem(url: &str) -> Option<String> {
    const SEVERAL: &str = "for Sentinel or a cluster, make a pool of `deadpool_redis::sentinel` or `deadpool_redis::cluster`, \
                           and pass it to `Cutover::redis` instead of `redis_from_env`";
    match without_scheme(url, &["redis://", "rediss://", "redis+unix://", "unix://"]) {
        Ok(rest) => match address_problem(rest)? {
            problem @ AddressProblem::SeveralHosts => Some(format!("{problem}; {SEVERAL}")),
            problem => Some(problem.to_string()),
        },
        Err(problem) if url.contains("sentinel") || url.contains("cluster") => {
            Some(format!("{problem}; {SEVERAL}"))
        }
        Err(problem) => Some(problem),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "redis")]
    #[test]
    fn sentinels_and_clusters_are_refused_with_what_to_use() {
        for url in [
            "redis://:hunter2@a:26379,b:26379/primary",
            "redis+sentinel://:hunter2@a:26379/primary",
            "redis-cluster://:hunter2@a",
        ] {
            let problem = redis_problem(url).unwrap();
            assert!(problem.contains("`Cutover::redis`") && !problem.contains("hunter2"), "{url}: {problem}");
        }
        assert_eq!(redis_problem("redis://:p%2Fq@[::1]:6379/0"), None);
        assert_eq!(redis_problem("unix:///run/redis.sock"), None);
        let problem = redis_problem("redis://:hun/ter2@cache").unwrap();
        assert!(problem.contains("%2F") && !problem.contains("ter2"), "{problem}");
    }

    /// Answers what a pool sends to test a connection. Returns the address and the number of connections so far.
    #[cfg(feature = "redis")]
    async fn redis_that_counts() -> (String, std::sync::Arc<std::sync::atomic::AtomicUsize>) {
        use std::sync::atomic::{AtomicUsize, Ordering};
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("redis://{}/", listener.local_addr().unwrap());
        let count = std::sync::Arc::new(AtomicUsize::new(0));
        let counted = std::sync::Arc::clone(&count);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    let mut bytes = [0; 4096];
                    while let Ok(length @ 1..) = client.read(&mut bytes).await {
                        let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
                        for command in text.split('*').skip(1) {
                            let last = command.trim_end().lines().last().unwrap_or_default();
                            let answer = match command.contains("PING") {
                                true => format!("${}\r\n{last}\r\n", last.len()),
                                false => "+OK\r\n".to_owned(),
                            };
                            client.write_all(answer.as_bytes()).await.unwrap();
                        }
                    }
                });
            }
        });
        (url, count)
    }

    #[cfg(feature = "redis")]
    #[tokio::test]
    async fn a_connection_to_redis_is_replaced_after_its_lifetime() {
        for (lifetime, connections) in [(LIFETIME, 1), (Duration::ZERO, 3)] {
            let (url, count) = redis_that_counts().await;
            let pool = redis_pool(&url, 1, lifetime).unwrap();
            for _ in 0..3 {
                drop(pool.get().await.unwrap());
            }
            assert_eq!(count.load(std::sync::atomic::Ordering::Relaxed), connections);
        }
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
