use std::net::SocketAddr;
use std::sync::Arc;

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

/// A part that can be left out, made as the environment says, or brought along.
#[derive(Debug, Default)]
pub(super) enum Part<T> {
    #[default]
    Out,
    FromEnvironment,
    Own(T),
}

/// Composes an instance of a service. See the crate's front page for the smallest real one.
///
/// Nothing happens before [`run`](Cutover::run), [`start`](Cutover::start) or [`preflight`](Cutover::preflight),
/// each of which reports everything that is wrong at once. Every part can be left out or brought along:
///
/// | part | without a word | otherwise |
/// |---|---|---|
/// | release, addresses, drain | as the [environment](super) says | [`release`](Cutover::release), [`listen`](Cutover::listen), [`admin`](Cutover::admin), [`drain`](Cutover::drain) |
/// | metrics | a registry of their own | [`registry`](Cutover::registry) |
/// | Postgres and the ledger in it | none, so no migrations | [`postgres_from_env`](Cutover::postgres_from_env), [`postgres`](Cutover::postgres) |
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
    pub(super) fleet: FleetOptions,
    pub(super) driver: DriverOptions,
    pub(super) postgres: Part<PgPool>,
    #[cfg(feature = "redis")]
    pub(super) redis: Part<deadpool_redis::Pool>,
    pub(super) flags: Option<Flags>,
    pub(super) declared_flags: Vec<String>,
    pub(super) subject: SubjectOf,
    pub(super) checks: Vec<Check>,
    pub(super) migrations: Vec<(Declaration, Option<String>)>,
}

impl Cutover {
    /// Begins to compose an instance of the service of this name. What isn't set in code comes from the
    /// [environment](super).
    pub fn service(name: impl Into<String>) -> Self {
        Self {
            service: name.into(),
            release: None,
            listen: None,
            admin: None,
            drain: None,
            registry: Registry::new(),
            fleet: FleetOptions::default(),
            driver: DriverOptions::default(),
            postgres: Part::Out,
            #[cfg(feature = "redis")]
            redis: Part::Out,
            flags: None,
            declared_flags: Vec::new(),
            subject: Arc::new(|_| Subject::new()),
            checks: Vec::new(),
            migrations: Vec::new(),
        }
    }

    /// The release that runs, instead of the one that the environment names.
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

    /// How to drain, instead of what `CUTOVER_GRACE_SECONDS` and `CUTOVER_PROPAGATION_SECONDS` say;
    /// [`DrainOptions::grace`] has to be the pod's grace period.
    pub fn drain(mut self, options: DrainOptions) -> Self {
        self.drain = Some(options);
        self
    }

    /// A registry of the service's own, that the library's families go into.
    pub fn registry(mut self, registry: Registry) -> Self {
        self.registry = registry;
        self
    }

    /// How to take part in the fleet.
    pub fn fleet(mut self, options: FleetOptions) -> Self {
        self.fleet = options;
        self
    }

    /// How to drive migrations.
    pub fn driver(mut self, options: DriverOptions) -> Self {
        self.driver = options;
        self
    }

    /// The service's Postgres: checked, and home of the ledger. The ledger has a few connections of its own,
    /// made with this pool's connect options.
    pub fn postgres(mut self, pool: PgPool) -> Self {
        self.postgres = Part::Own(pool);
        self
    }

    /// A pool for the Postgres at `DATABASE_URL`, which [`Instance::postgres`](super::Instance::postgres) hands
    /// out: `CUTOVER_POOL_SIZE` connections (10), each for half an hour at most so that a changed DNS record is
    /// followed, and 5 s to wait for one.
    pub fn postgres_from_env(mut self) -> Self {
        self.postgres = Part::FromEnvironment;
        self
    }

    /// The service's Redis: checked.
    #[cfg(feature = "redis")]
    pub fn redis(mut self, pool: deadpool_redis::Pool) -> Self {
        self.redis = Part::Own(pool);
        self
    }

    /// A pool for the Redis at `REDIS_URL`, which [`Instance::redis`](super::Instance::redis) hands out, of
    /// `CUTOVER_POOL_SIZE` connections (10).
    #[cfg(feature = "redis")]
    pub fn redis_from_env(mut self) -> Self {
        self.redis = Part::FromEnvironment;
        self
    }

    /// Where flags come from, instead of the server at `UNLEASH_URL`, whose last known state is kept in the
    /// ledger where there is one.
    pub fn flags(mut self, flags: Flags) -> Self {
        self.flags = Some(flags);
        self
    }

    /// A flag that the service asks for: a preflight holds it against the flag server, and a start warns of it.
    pub fn flag<T>(mut self, flag: &Flag<T>) -> Self {
        self.declared_flags.push(flag.name().to_owned());
        self
    }

    /// Whom a request's flag decisions are about. Without it strategies that look at user, session or properties
    /// have nobody to look at.
    pub fn subject(mut self, subject: impl Fn(&Parts) -> Subject + Send + Sync + 'static) -> Self {
        self.subject = Arc::new(subject);
        self
    }

    /// A check of one more dependency.
    pub fn check(mut self, check: Check) -> Self {
        self.checks.push(check);
        self
    }

    /// A migration that this build takes part in: a [`MigrationSpec`](crate::migration::MigrationSpec), or a function that
    /// makes one of the service's pool. Its desired phase comes from
    /// [`MigrationSpec::desired`](crate::migration::MigrationSpec::desired).
    pub fn migration(mut self, spec: impl IntoSpec) -> Self {
        self.migrations.push((spec.into_declaration(), None));
        self
    }

    /// A migration whose desired phase is the payload of this flag's variant, as the flag server has it. With
    /// no flag server it comes from [`MigrationSpec::desired`](crate::migration::MigrationSpec::desired), by default the
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
