//! The start of an instance, in all releases.

use std::error::Error;
use std::time::Duration;

use axum::Router;
use cutover::drain::DrainOptions;
use cutover::flags::Subject;
use cutover::migration::PhaseRange;
use cutover::session::{RedisStore, RedisStoreOptions};
use cutover::{Cutover, Instance};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tower_sessions::SessionManagerLayer;

use crate::fault::{self, Fault};
use crate::http;
use crate::migration;
use crate::release1::Release1;
use crate::release2::Release2;
use crate::release3::Release3;
use crate::release4::Release4;

/// An error of the start.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// A release of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// Knows only the old column; does not declare the migration.
    One,
    /// Knows both columns.
    Two,
    /// Knows only the new column.
    Three,
    /// Knows the new column and the one of the second migration. The first migration has ended.
    Four,
}

impl Release {
    /// The phases of the first migration that this release can run; `None` if it does not declare the migration.
    fn range(self) -> Option<PhaseRange> {
        match self {
            Self::One | Self::Four => None,
            Self::Two => Some(PhaseRange::FULL),
            Self::Three => Some(migration::new_only()),
        }
    }

    fn routes(self, pool: PgPool, instance: &Instance) -> Option<Router> {
        let migration = || instance.migration(migration::NAME);
        Some(match self {
            Self::One => http::router(Release1 { pool }),
            Self::Two => http::router(Release2::new(pool, migration()?)),
            Self::Three => http::router(Release3::new(pool, migration()?)),
            Self::Four => http::router(Release4::new(pool, instance.migration(migration::SECOND)?)),
        })
    }
}

/// Starts an instance of a release, serves its routes, and returns after the drain.
///
/// It takes no closure, so it is compiled once and not once for each binary.
///
/// # Errors
///
/// A problem of the environment, or a server that cannot be reached.
#[tokio::main]
pub async fn run(release: Release) -> Result<(), BoxError> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let pool = PgPoolOptions::new()
        .max_connections(number("POOL_SIZE", 10)?)
        .acquire_timeout(Duration::from_secs(5))
        .max_lifetime(Duration::from_secs(30 * 60))
        // Lazily: the start itself waits for Postgres, and says so on /readyz.
        .connect_lazy(&variable("DATABASE_URL")?)?;
    let redis = deadpool_redis::Config::from_url(variable("REDIS_URL")?)
        .create_pool(Some(deadpool_redis::Runtime::Tokio1))?;
    let seconds = |name, default| number(name, default).map(|n| Duration::from_secs(n.into()));
    let mut service = Cutover::service("payments")
        .postgres(pool.clone())
        .redis(redis.clone())
        .subject(|request| match request.headers.get("x-user").map(|user| user.to_str()) {
            Some(Ok(user)) => Subject::new().user(user),
            _ => Subject::new(),
        })
        .drain(DrainOptions {
            grace: seconds("GRACE_SECONDS", 30)?,
            propagation: seconds("PROPAGATION_SECONDS", 5)?,
            ..DrainOptions::default()
        });
    let soak = seconds("SOAK_SECONDS", 24 * 60 * 60)?;
    if release == Release::Four {
        service = service.migration(migration::declare_second(pool.clone(), soak)?);
    }
    if let Some(range) = release.range() {
        service = service.migration_by_flag(migration::declare(pool.clone(), range, soak)?, migration::FLAG);
    }
    let fault = match std::env::var("FAULT") {
        Ok(text) => text.parse()?,
        Err(_) => Fault::Nothing,
    };
    if let Some(check) = fault.check() {
        service = service.check(check);
    }
    let instance = service.start().await?;
    let Some(mut routes) = release.routes(pool.clone(), &instance) else {
        return Err(format!("this build does not declare the migration {:?}", migration::NAME).into());
    };
    if fault != Fault::Nothing {
        routes = routes.layer(axum::middleware::from_fn_with_state((fault, pool), fault::apply));
    }
    let store = RedisStore::new(
        redis,
        RedisStoreOptions {
            // A late session is better than a lost one.
            time_limit: Duration::from_secs(5),
            ..Default::default()
        },
    )?;
    let sessions = SessionManagerLayer::new(store).with_secure(false);
    let report = instance.serve(routes.layer(sessions)).await?;
    tracing::info!(?report, "drained");
    Ok(())
}

fn variable(name: &str) -> Result<String, BoxError> {
    std::env::var(name).map_err(|error| format!("{name}: {error}").into())
}

fn number(name: &str, default: u32) -> Result<u32, BoxError> {
    match std::env::var(name) {
        Err(_) => Ok(default),
        Ok(text) => text.parse().map_err(|_| format!("{name}: {text:?} is not a whole number").into()),
    }
}
