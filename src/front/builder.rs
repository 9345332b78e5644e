use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::request::Parts;
use prometheus::Registry;
use sqlx::PgPool;

use super::declare::{Declaration, IntoSpec};
use super::instance::SubjectOf;
use crate::drain::DrainOptions;
use crate::flags::{Flag, Flags, Subject};
use crate::fleet::FleetOptions;
use crate::health::Check;
use crate::migration::DriverOptions;
use crate::release::Release;

/// A part that is absent, made from the environment, or supplied by the service.
#[derive(Debug, Default)]
pub(super) enum Part<T> {
    #[default]
    Out,
    FromEnvironment,
    Own(T),
}

/// Composes an instance of a service. The crate's front page shows the smallest real one.
///
/// Nothing happens before [`run`](Cutover::run), [`start`](Cutover::start) or [`preflight`](Cutover::preflight). Each of
/// them reports all problems of the configuration at once. Every part can be left out or supplied:
///
/// | part | default | set with |
/// |---|---|---|
/// | release, addresses, drain | from the [environment](super) | [`release`](Cutover::release), [`listen`](Cutover::listen), [`admin`](Cutover::admin), [`drain`](Cutover::drain) |
/// | metrics | a registry of its own | [`registry`](Cutover::registry) |
/// | Postgres, with the ledger | none, so no migrations | [`postgres_from_env`](Cutover::postgres_from_env), [`postgres`](Cutover::postgres) |
/// | Redis | none, so no sessions | `redis_from_env`, `redis` |
/// | flags | the server at `UNLEASH_URL`, or every flag's default | [`flags`](Cutover::flags) |
/// | migrations | none | [`migration`](Cutover::migration), [`migration_by_flag`](Cutover::migration_by_flag) |
#[must_use = "nothing happens before run or start"]
pub struct Cutover {
    pub(super) service: String,
    pub(super) release: Option<Release>,
    pub(super) listen: Option<SocketAddr>,
    pub(super) admin: Option<SocketAddr>,
    pub(super) drain: Option<DrainOptions>,
    pub(super) registry: Registry,
    pub(super) buckets: Option<Vec<Duration>>,
    pub(super) process_metrics: bool,
    pub(super) fleet: FleetOptions,
    pub(super) driver: DriverOptions,
    pub(super) postgres: Part<PgPool>,
    pub(super) unnamed_statements: bool,
    #[cfg(feature = "redis")]
    pub(super) redis: Part<crate::redis::RedisPool>,
    pub(super) flags: Option<Flags>,
    pub(super) declared_flags: Vec<String>,
    pub(super) subject: SubjectOf,
    pub(super) checks: Vec<Check>,
    pub(super) migrations: Vec<(Declaration, Option<String>)>,
}

impl Cutover {
    /// A builder for an instance of the service with this name. What is not set in code comes from the
    /// [environment](super).
    pub fn service(name: impl Into<String>) -> Self {
        Self {
            service: name.into(),
            release: None,
            listen: None,
            admin: None,
            drain: None,
            registry: Registry::new(),
            buckets: None,
            process_metrics: false,
            fleet: FleetOptions::default(),
            driver: DriverOptions::default(),
            postgres: Part::Out,
            unnamed_statements: false,
            #[cfg(feature = "redis")]
            redis: Part::Out,
            flags: None,
            declared_flags: Vec::new(),
            subject: Arc::new(|_| Subject::new()),
            checks: Vec::new(),
            migrations: Vec::new(),
        }
    }

    /// The identity of this build, instead of the one in the environment.
    pub fn release(mut self, release: Release) -> Self {
        self.release = Some(release);
        self
    }

    /// Address of the public listener, instead of `LISTEN_ADDR`.
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = Some(address);
        self
    }

    /// Address of the listener for probes, metrics and `/drain`, instead of `ADMIN_ADDR`.
    pub fn admin(mut self, address: SocketAddr) -> Self {
        self.admin = Some(address);
        self
    }

    /// How to drain, instead of `CUTOVER_GRACE_SECONDS` and `CUTOVER_PROPAGATION_SECONDS`. [`DrainOptions::grace`] has to
    /// be the pod's grace period. Without [`DrainOptions::secret`], `CUTOVER_DRAIN_SECRET` still applies.
    pub fn drain(mut self, options: DrainOptions) -> Self {
        self.drain = Some(options);
        self
    }

    /// The service's own registry, for the metrics of the library.
    pub fn registry(mut self, registry: Registry) -> Self {
        self.registry = registry;
        self
    }

    /// Upper bounds of the buckets of `http_request_duration_seconds` and `http_request_first_byte_seconds`: 1 to 24,
    /// shortest first. Default: 5 ms to 10 s, as in Prometheus' client libraries.
    pub fn buckets(mut self, bounds: impl IntoIterator<Item = Duration>) -> Self {
        self.buckets = Some(bounds.into_iter().collect());
        self
    }

    /// Adds the metrics of the process; see [`Metrics::register_process`](crate::metrics::Metrics::register_process).
    pub fn process_metrics(mut self) -> Self {
        self.process_metrics = true;
        self
    }

    /// Options of the fleet's membership.
    pub fn fleet(mut self, options: FleetOptions) -> Self {
        self.fleet = options;
        self
    }

    /// Options of the driver of migrations.
    pub fn driver(mut self, options: DriverOptions) -> Self {
        self.driver = options;
        self
    }

    /// The service's Postgres, which holds the ledger. It is checked for readiness. The ledger opens a few connections of
    /// its own with this pool's connect options.
    pub fn postgres(mut self, pool: PgPool) -> Self {
        self.postgres = Part::Own(pool);
        self
    }

    /// A pool for the Postgres at `DATABASE_URL`; [`Instance::postgres`](super::Instance::postgres) returns it. It has
    /// `CUTOVER_POOL_SIZE` connections (10), each for at most half an hour so that a changed DNS record is followed, and a
    /// request waits at most 5 s for one.
    pub fn postgres_from_env(mut self) -> Self {
        self.postgres = Part::FromEnvironment;
        self
    }

    /// States that none of the service's own statements on Postgres has a name, instead of `CUTOVER_UNNAMED_STATEMENTS`. Without
    /// it, a service does not start behind a pooler in transaction mode that does not keep prepared statements: there, the name
    /// of a statement may belong to another client's statement.
    ///
    /// With sqlx, a statement has no name if it is a `raw_sql`, or if it is marked `persistent(false)` and runs in a transaction.
    /// (`statement-cache-capacity=0` does not take the names away.) With tokio-postgres, the methods with `typed` in their name
    /// send statements without a name. The library's own statements have none.
    pub fn unnamed_statements(mut self) -> Self {
        self.unnamed_statements = true;
        self
    }

    /// The service's Redis: a pool for one server, for a primary behind Sentinel, or for a cluster; see
    /// [`RedisPool`](crate::redis::RedisPool). It is checked for readiness.
    #[cfg(feature = "redis")]
    pub fn redis(mut self, pool: impl Into<crate::redis::RedisPool>) -> Self {
        self.redis = Part::Own(pool.into());
        self
    }

    /// A pool for the Redis at `REDIS_URL`, with `CUTOVER_POOL_SIZE` connections (10);
    /// [`Instance::redis`](super::Instance::redis) returns it.
    #[cfg(feature = "redis")]
    pub fn redis_from_env(mut self) -> Self {
        self.redis = Part::FromEnvironment;
        self
    }

    /// The source of flags, instead of the server at `UNLEASH_URL`. The last known state of that server is kept in the
    /// ledger, if there is one.
    pub fn flags(mut self, flags: Flags) -> Self {
        self.flags = Some(flags);
        self
    }

    /// A flag that the service uses. A preflight reports it and a start warns if the flag server does not have it.
    pub fn flag<T>(mut self, flag: &Flag<T>) -> Self {
        self.declared_flags.push(flag.name().to_owned());
        self
    }

    /// Finds the subject of a request's flag decisions. Without it, strategies by user, session or properties do not match.
    pub fn subject(mut self, subject: impl Fn(&Parts) -> Subject + Send + Sync + 'static) -> Self {
        self.subject = Arc::new(subject);
        self
    }

    /// A health check of a further dependency.
    pub fn check(mut self, check: Check) -> Self {
        self.checks.push(check);
        self
    }

    /// A migration of this build: a [`MigrationSpec`](crate::migration::MigrationSpec), or a function that makes one from
    /// the service's pool. Its desired phase comes from
    /// [`MigrationSpec::desired`](crate::migration::MigrationSpec::desired).
    pub fn migration(mut self, spec: impl IntoSpec) -> Self {
        self.migrations.push((spec.into_declaration(), None));
        self
    }

    /// A migration whose desired phase is the payload of this flag's variant. Without a flag server it comes from [`MigrationSpec::desired`](crate::migration::MigrationSpec::desired), by default the
    /// ledger.
    pub fn migration_by_flag(mut self, spec: impl IntoSpec, flag: impl Into<String>) -> Self {
        let flag = flag.into();
        self.declared_flags.push(flag.clone());
        self.migrations.push((spec.into_declaration(), Some(flag)));
        self
    }
}

impl std::fmt::Debug for Cutover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cutover")
            .field("service", &self.service)
            .field("release", &self.release)
            .field("listen", &self.listen)
            .field("admin", &self.admin)
            .field("drain", &self.drain)
            .field("fleet", &self.fleet)
            .field("driver", &self.driver)
            .field("flags", &self.declared_flags)
            .finish_non_exhaustive()
    }
}
