use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::request::Parts;
use sqlx::PgPool;

use super::desired::FromFlag;
use super::instance::SubjectOf;
use super::{Instance, StartError};
use crate::drain::{Drain, DrainOptions};
use crate::flags::{Flags, Subject};
use crate::fleet::{Fleet, FleetOptions, Ledger};
use crate::health::{Check, Health};
use crate::metrics::Metrics;
use crate::migration::control::{Agent, DriverOptions, Spec};
use crate::release::Release;

/// How long a start waits for the flags.
const FLAGS_WAIT: Duration = Duration::from_secs(2);

/// Composes an instance of a service. See the crate's front page for the smallest real one.
///
/// Nothing happens before [`Cutover::start`], which reports everything that is wrong at once.
#[must_use = "nothing happens before start"]
pub struct Cutover {
    service: String,
    release: Option<Release>,
    listen: Option<SocketAddr>,
    admin: Option<SocketAddr>,
    drain: DrainOptions,
    fleet: FleetOptions,
    driver: DriverOptions,
    postgres: Option<PgPool>,
    #[cfg(feature = "redis")]
    redis: Option<deadpool_redis::Pool>,
    flags: Option<Flags>,
    #[cfg(feature = "unleash")]
    kept: super::kept::InLedger,
    subject: SubjectOf,
    checks: Vec<Check>,
    migrations: Vec<(Spec, Option<String>)>,
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
            drain: DrainOptions::default(),
            fleet: FleetOptions::default(),
            driver: DriverOptions::default(),
            postgres: None,
            #[cfg(feature = "redis")]
            redis: None,
            flags: None,
            #[cfg(feature = "unleash")]
            kept: super::kept::InLedger::default(),
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

    /// How to drain; [`DrainOptions::grace`] has to be the pod's grace period.
    pub fn drain(mut self, options: DrainOptions) -> Self {
        self.drain = options;
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
        self.postgres = Some(pool);
        self
    }

    /// The service's Redis: checked.
    #[cfg(feature = "redis")]
    pub fn redis(mut self, pool: deadpool_redis::Pool) -> Self {
        self.redis = Some(pool);
        self
    }

    /// Where flags come from, instead of the server at `UNLEASH_URL`, whose last known state is kept in the
    /// ledger where there is one.
    pub fn flags(mut self, flags: Flags) -> Self {
        self.flags = Some(flags);
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

    /// A migration that this build takes part in. Its desired phase comes from [`Spec::desired`].
    pub fn migration(mut self, spec: Spec) -> Self {
        self.migrations.push((spec, None));
        self
    }

    /// A migration whose desired phase is the payload of this flag's variant, as the flag server has it. With
    /// no flag server it comes from [`Spec::desired`], by default the ledger.
    pub fn migration_by_flag(mut self, spec: Spec, flag: impl Into<String>) -> Self {
        self.migrations.push((spec, Some(flag.into())));
        self
    }

    /// Makes the parts, joins the fleet and starts to take part in the migrations.
    ///
    /// # Errors
    ///
    /// [`StartError::Configuration`] with all that is wrong with options and environment;
    /// [`StartError::Ledger`] when the ledger can't be used.
    ///
    /// # Cancel safety
    ///
    /// Safe: what was begun ends with the future.
    pub async fn start(mut self) -> Result<Instance, StartError> {
        let mut problems = Vec::new();
        let listen = self.listen.or_else(|| address("LISTEN_ADDR", 8080, &mut problems));
        let admin = self.admin.or_else(|| address("ADMIN_ADDR", 9090, &mut problems));
        let release = match self.release.take().map_or_else(|| Release::from_env(&self.service), Ok) {
            Ok(release) => Some(release),
            Err(error) => {
                problems.push(error.to_string());
                None
            }
        };
        let health = Health::new();
        let drain = noted(Drain::new(&health, self.drain.clone()), &mut problems);
        let metrics = release.as_ref().and_then(|release| noted(Metrics::new(release), &mut problems));
        if self.postgres.is_none() && !self.migrations.is_empty() {
            problems.push("migration: needs the service's Postgres, set with `postgres`".into());
        }
        let flags = release.as_ref().and_then(|release| self.take_flags(release, &mut problems));
        if let (Some(metrics), Some((flags, _))) = (&metrics, &flags) {
            noted(flags.register(metrics.registry(), metrics.release()), &mut problems);
        }
        for check in self.take_checks(flags.as_ref().map(|(flags, _)| flags)) {
            noted(health.check(check), &mut problems);
        }
        let (
            Some(release),
            Some(drain),
            Some(metrics),
            Some((flags, from_server)),
            Some(listen),
            Some(admin),
            true,
        ) = (release, drain, metrics, flags, listen, admin, problems.is_empty())
        else {
            return Err(StartError::Configuration(problems));
        };
        let subject = self.subject.clone();
        let agent = self.join(&release, &health, &flags, from_server).await?.map(Arc::new);
        // The first request shall find the state of now, or the last one that was kept; a flag server that is
        // away is no reason not to start.
        let _ = tokio::time::timeout(FLAGS_WAIT, flags.ready()).await;
        let instance = Instance { release, listen, admin, health, metrics, drain, flags, subject, agent };
        instance.leave_when_drained();
        Ok(instance)
    }

    /// The flags, and whether somebody turns them outside of this process.
    fn take_flags(&mut self, release: &Release, problems: &mut Vec<String>) -> Option<(Flags, bool)> {
        if let Some(flags) = self.flags.take() {
            return Some((flags, true));
        }
        let none: [(&str, crate::flags::FixedFlag); 0] = [];
        #[cfg(feature = "unleash")]
        if let Some(url) = variable("UNLEASH_URL", problems) {
            let token = variable("UNLEASH_TOKEN", problems).unwrap_or_default();
            let mut options =
                crate::flags::UnleashOptions::new(url, token, release.service(), release.instance());
            if self.postgres.is_some() {
                options.backup = Some(Arc::new(self.kept.clone()));
            }
            return noted(Flags::unleash(options), problems).map(|flags| (flags, true));
        }
        tracing::info!(service = release.service(), "no flag server: every flag has its default");
        Some((Flags::fixed(none), false))
    }

    fn take_checks(&mut self, flags: Option<&Flags>) -> Vec<Check> {
        let mut checks = std::mem::take(&mut self.checks);
        checks.extend(self.postgres.as_ref().map(Check::postgres));
        #[cfg(feature = "redis")]
        checks.extend(self.redis.as_ref().map(Check::redis));
        if let Some(flags) = flags.cloned() {
            checks.push(Check::new("flags", move || {
                let fresh = flags.is_fresh();
                async move {
                    Ok::<_, std::convert::Infallible>(match fresh {
                        true => crate::health::Observed::Pass,
                        // The last known state or the defaults serve; a start must not hang on it.
                        false => {
                            crate::health::Observed::Warn("the flag server was not reached lately".into())
                        }
                    })
                }
            }));
        }
        checks
    }

    async fn join(
        self,
        release: &Release,
        health: &Health,
        flags: &Flags,
        from_server: bool,
    ) -> Result<Option<Agent>, StartError> {
        let Some(pool) = self.postgres else { return Ok(None) };
        let name = format!("cutover {}", release.instance());
        let options = (*pool.connect_options()).clone().application_name(&name);
        let ledger = Ledger::open(options).await?;
        #[cfg(feature = "unleash")]
        self.kept.opened(&ledger, release.service());
        let fleet = Fleet::join(ledger, release, self.fleet, health).await?;
        let specs = self.migrations.into_iter().map(|(mut spec, flag)| {
            if let (Some(flag), true) = (flag, from_server) {
                spec = spec.desired(FromFlag::new(flags.clone(), &flag));
            }
            spec
        });
        Ok(Some(Agent::start(fleet, specs.collect(), self.driver, health).await?))
    }
}

/// The value, or `None` and its error among the problems.
fn noted<T, E: std::fmt::Display>(result: Result<T, E>, problems: &mut Vec<String>) -> Option<T> {
    result.map_err(|error| problems.push(error.to_string())).ok()
}

fn variable(name: &str, problems: &mut Vec<String>) -> Option<String> {
    match std::env::var(name) {
        Ok(value) => Some(value),
        Err(std::env::VarError::NotPresent) => None,
        Err(std::env::VarError::NotUnicode(_)) => {
            problems.push(format!("{name}: is not valid UTF-8"));
            None
        }
    }
}

fn address(name: &str, port: u16, problems: &mut Vec<String>) -> Option<SocketAddr> {
    match variable(name, problems) {
        None => Some(SocketAddr::from(([0, 0, 0, 0], port))),
        Some(text) => text
            .parse()
            .map_err(|_| {
                problems.push(format!("{name}: {text:?} is no address; use one like 0.0.0.0:{port}"))
            })
            .ok(),
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
            .field("migrations", &self.migrations)
            .finish_non_exhaustive()
    }
}
