use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prometheus::{IntGauge, Opts};
use sqlx::PgPool;

use super::admin::AdminServer;
use super::desired::FromFlag;
use super::environment::{Environment, Output};
use super::instance::SubjectOf;
use super::startup::{Joined, Retry};
use super::{BoxError, Cutover, Instance, StartError, pools};
use crate::drain::{Drain, DrainOptions, DrainSecret};
use crate::flags::{FlagProblemKind, Flags};
use crate::fleet::{Fleet, FleetOptions};
use crate::health::{Check, Criticality, Health, ProbeOutcome, Signal};
use crate::ledger::Ledger;
use crate::metrics::{Metrics, MetricsError};
use crate::migration::{Agent, DriverOptions, MigrationSpec, check_specs};
use crate::pool::{ConnectionShare, PoolWaitMetrics, ShareError, ShareOptions};
use crate::preflight::{Preflight, PreflightReport};
use crate::release::Release;
use crate::{ConfigError, Problem};

/// How long a start waits for the flags.
const FLAGS_WAIT: Duration = Duration::from_secs(2);

/// The parts of an instance that can be made without a network, and the problems with the others.
pub(super) struct Assembly {
    pub(super) preflight: Option<Output>,
    problems: Vec<Problem>,
    fingerprint: String,
    service: String,
    release: Option<Release>,
    listen: Option<SocketAddr>,
    admin: Option<SocketAddr>,
    health: Health,
    drain: Option<Drain>,
    metrics: Option<Metrics>,
    postgres: Option<PgPool>,
    share: Option<(String, ShareOptions)>,
    #[cfg(feature = "redis")]
    redis: Option<deadpool_redis::Pool>,
    flags: Option<(Flags, FlagSource)>,
    #[cfg(feature = "unleash")]
    kept: super::kept::InLedger,
    declared_flags: Vec<String>,
    subject: SubjectOf,
    process_metrics: bool,
    checks: Vec<Check>,
    specs: Vec<(MigrationSpec, Option<String>)>,
    fleet: FleetOptions,
    driver: DriverOptions,
    #[cfg(feature = "console")]
    console: crate::console::InstanceConsole,
}

/// Who sets the flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FlagSource {
    /// A flag server, or whatever the service brought along.
    Outside,
    /// Nobody: every flag has its default.
    Defaults,
}

impl Assembly {
    pub(super) fn new(builder: Cutover, mut environment: Environment) -> Self {
        let preflight = environment.preflight();
        let listen = builder.listen.or_else(|| address("LISTEN_ADDR", 8080, &mut environment));
        let admin = builder.admin.or_else(|| address("ADMIN_ADDR", 9090, &mut environment));
        let drain_options = drain_options(builder.drain, &mut environment);
        let (postgres, share) = match pools::postgres(builder.postgres, &builder.service, &mut environment) {
            Some(made) => (Some(made.pool), made.share),
            None => (None, None),
        };
        #[cfg(feature = "redis")]
        let redis = pools::redis(builder.redis, &mut environment);
        let problems = &mut environment.problems;
        let release =
            valid(builder.release.map_or_else(|| Release::from_env(&builder.service), Ok), problems);
        if postgres.is_none() && !builder.migrations.is_empty() {
            let problem = "needs the service's Postgres; call `postgres` or `postgres_from_env`";
            problems.push(Problem::new("migration", problem));
        }
        let mut specs = Vec::new();
        for (declaration, flag) in builder.migrations {
            match postgres.as_ref().map(declaration) {
                Some(Ok(spec)) => specs.push((spec, flag)),
                Some(Err(error)) => problems.extend(problems_of("migration", error)),
                None => {}
            }
        }
        if postgres.is_some() {
            problems.extend(builder.fleet.problems(builder.fleet.name.as_ref().unwrap_or(&builder.service)));
            builder.driver.check(problems);
            let declared: Vec<MigrationSpec> = specs.iter().map(|(spec, _)| spec.clone()).collect();
            check_specs(&declared, problems);
        }
        if let Some((_, options)) = &share {
            problems.extend(options.problems());
        }
        let declared = format!(
            "{drain_options:?} {:?} {:?} {:?} {:?}",
            builder.fleet,
            builder.driver,
            builder.declared_flags,
            specs.iter().map(|(spec, flag)| (&spec.name, spec.range, flag)).collect::<Vec<_>>()
        );
        let health = Health::new();
        let drain = valid(Drain::new(&health, drain_options), problems);
        let metrics = release.as_ref().and_then(|release| {
            self::metrics(builder.registry, release, builder.buckets.as_deref(), problems)
        });
        let mut assembly = Self {
            #[cfg(feature = "console")]
            console: crate::console::InstanceConsole::new(
                builder.fleet.name.as_deref().unwrap_or(&builder.service),
            ),
            preflight,
            problems: Vec::new(),
            fingerprint: String::new(),
            service: builder.service,
            release,
            listen,
            admin,
            health,
            drain,
            metrics,
            postgres,
            share,
            #[cfg(feature = "redis")]
            redis,
            flags: None,
            #[cfg(feature = "unleash")]
            kept: super::kept::InLedger::default(),
            declared_flags: builder.declared_flags,
            subject: builder.subject,
            process_metrics: builder.process_metrics,
            checks: builder.checks,
            specs,
            fleet: builder.fleet,
            driver: builder.driver,
        };
        assembly.checks.extend(assembly.postgres.as_ref().map(Check::postgres));
        #[cfg(feature = "redis")]
        assembly.checks.extend(assembly.redis.as_ref().map(Check::redis));
        assembly.flags = assembly.take_flags(builder.flags, &mut environment);
        environment.refuse_unknown();
        assembly.fingerprint = environment.fingerprint(&declared);
        assembly.problems = environment.problems;
        assembly.connect_parts();
        assembly
    }

    #[cfg_attr(not(feature = "unleash"), expect(unused_variables, reason = "only Unleash has an address"))]
    fn take_flags(&self, own: Option<Flags>, environment: &mut Environment) -> Option<(Flags, FlagSource)> {
        if let Some(flags) = own {
            return Some((flags, FlagSource::Outside));
        }
        #[cfg(feature = "unleash")]
        if let Some(url) = environment.text("UNLEASH_URL") {
            let release = self.release.as_ref()?;
            let token = environment.text("UNLEASH_TOKEN").unwrap_or_default();
            let mut options =
                crate::flags::UnleashOptions::new(url, token, release.service(), release.instance());
            if self.postgres.is_some() && self.preflight.is_none() {
                options.backup = Some(Arc::new(self.kept.clone()));
                options.fleet = Some(self.kept.polling.clone());
            }
            if let Some(interval) = environment.seconds("UNLEASH_INTERVAL_SECONDS") {
                options.interval = interval;
            }
            if let Some(interval) = environment.seconds("UNLEASH_DIRECT_INTERVAL_SECONDS") {
                options.direct_interval = interval;
            }
            // Otherwise a state would be stale between two polls.
            let slowest = options.interval.max(options.direct_interval);
            options.stale_after = options.stale_after.max(slowest.saturating_mul(2));
            return match Flags::unleash(options) {
                Ok(flags) => Some((flags, FlagSource::Outside)),
                Err(error) => {
                    environment.problems.extend(problems_of("flags", error.into()));
                    None
                }
            };
        }
        tracing::info!(service = self.service, "no flag server is configured; every flag has its default");
        let none: [(&str, crate::flags::FixedFlag); 0] = [];
        Some((Flags::fixed(none), FlagSource::Defaults))
    }

    /// Registers signal handlers, metrics and checks.
    fn connect_parts(&mut self) {
        // Before the first connection: the first process of a container ignores a SIGTERM that it has no handler for, and
        // any other process is killed by it.
        if self.preflight.is_none()
            && let Some(drain) = &self.drain
            && let Err(error) = drain.on_signals()
        {
            tracing::warn!(%error, "could not install signal handlers; the start does not react to SIGTERM");
        }
        let problems = &mut self.problems;
        if let Some(metrics) = &self.metrics {
            registered(cutover_config_info(metrics, &self.fingerprint), problems);
            registered(self.health.register(metrics.registry()), problems);
            if let Some(drain) = &self.drain {
                registered(drain.register(metrics.registry()), problems);
            }
            if self.process_metrics {
                registered(metrics.register_process(), problems);
            }
            if let Some((flags, _)) = &self.flags
                && let Err(error) = flags.register(metrics.registry(), metrics.release())
            {
                problems.extend(problems_of("flags", error.into()));
            }
        }
        let flags = self.flags.as_ref().map(|(flags, _)| freshness(flags.clone()));
        for check in self.checks.iter().cloned().chain(flags) {
            if let Err(error) = self.health.check(check) {
                problems.extend(problems_of("check", error.into()));
            }
        }
    }

    pub(super) async fn look(self) -> PreflightReport {
        // The preflight probes by itself.
        self.health.close();
        let mut preflight = Preflight::new().fingerprint(self.fingerprint);
        for problem in self.problems {
            preflight = preflight.problem("configuration", problem.to_string());
        }
        for check in self.checks {
            preflight = preflight.check(check);
        }
        if let Some(pool) = &self.postgres {
            let fleet = self.fleet.name.unwrap_or(self.service);
            let specs = self.specs.into_iter().map(|(spec, _)| spec).collect();
            preflight = preflight.ledger((*pool.connect_options()).clone(), fleet, specs);
            if let Some((_, options)) = &self.share {
                preflight = preflight.budget(options.max_connections, None);
            }
        }
        let flags = self.flags.and_then(|(flags, source)| (source == FlagSource::Outside).then_some(flags));
        let report = preflight.flags(flags.clone(), self.declared_flags).run().await;
        if let Some(flags) = flags {
            flags.close().await;
        }
        report
    }

    /// Serves the admin pages, connects, and joins the fleet.
    pub(super) async fn start(self) -> Result<Instance, StartError> {
        ConfigError::check(self.problems.clone())?;
        let (Some(release), Some(drain), Some(metrics), Some((flags, source)), Some(listen), Some(admin)) = (
            self.release.clone(),
            self.drain.clone(),
            self.metrics.clone(),
            self.flags.clone(),
            self.listen,
            self.admin,
        ) else {
            // A part that is missing has a problem.
            return Err(ConfigError { problems: self.problems }.into());
        };
        let starting = self.health.signal("start", Criticality::Critical);
        let pages = self.health.router().merge(metrics.router()).merge(drain.router());
        #[cfg(feature = "console")]
        let pages = pages.merge(self.console.router());
        let admin_server = AdminServer::start(&drain, admin, pages).await?;

        let mut joined = Joined::default();
        let started = tokio::select! {
            started = self.join(&release, &metrics, &flags, source, &starting, &mut joined) => started,
            () = drain.begun() => Err(StartError::Interrupted),
        };
        if let Err(error) = started {
            joined.leave_in_time().await;
            flags.close().await;
            return Err(error);
        }
        let admission = joined.pool.as_ref().and_then(|guard| {
            let waits = PoolWaitMetrics::register(&metrics, "postgres");
            let waits = waits
                .inspect_err(|error| tracing::warn!(%error, "could not register the metrics of the pool"))
                .ok()?;
            Some(guard.admission(pools::WAIT, waits))
        });
        let agent = joined.agent.clone();
        joined.leave_when_drained(&drain);
        drain.on_drain("flags", {
            let flags = flags.clone();
            move |_| async move { flags.close().await }
        });
        #[cfg(feature = "redis")]
        let sessions = self.redis.clone().map(crate::session::RedisStore::with_defaults);
        #[cfg(feature = "redis")]
        if let Some(sessions) = &sessions
            && let Err(error) = sessions.register(metrics.registry())
        {
            tracing::warn!(%error, "could not register the metric of session conflicts");
        }
        starting.fail("waiting for the service to be served");
        Ok(Instance {
            release,
            listen,
            starting,
            admin_server,
            health: self.health,
            metrics,
            drain,
            flags,
            subject: self.subject,
            agent,
            admission,
            postgres: self.postgres,
            #[cfg(feature = "redis")]
            redis: self.redis,
            #[cfg(feature = "redis")]
            sessions,
        })
    }

    /// Joins the fleet and starts the migrations, if the service has a Postgres.
    async fn join(
        &self,
        release: &Release,
        metrics: &Metrics,
        flags: &Flags,
        source: FlagSource,
        starting: &Signal,
        joined: &mut Joined,
    ) -> Result<(), StartError> {
        if let Some(pool) = &self.postgres {
            let retry = Retry { signal: starting };
            let name = format!("cutover {}", release.instance());
            let options = (*pool.connect_options()).clone().application_name(&name);
            let open = async || {
                let ledger = Ledger::open(options.clone()).await?;
                match ledger.pooler() {
                    Some(pooler) if pooler.breaks_statements(&pool.connect_options()) => {
                        Err(ShareError::Pooler { reason: pooler.to_string() })
                    }
                    _ => Ok(ledger),
                }
            };
            let ledger = retry.until_done("the ledger", open).await?;
            #[cfg(feature = "console")]
            self.console.attach(ledger.clone(), options.clone());
            #[cfg(feature = "unleash")]
            self.kept.opened(&ledger, release.service());
            let join = async || {
                let options = self.fleet.clone();
                Ok(Fleet::join(ledger.clone(), release, options, &self.health).await?)
            };
            let fleet = &*joined.fleet.insert(retry.until_done("the fleet", join).await?);
            warn_if_unregistered("the lease", fleet.register(metrics.registry()));
            if let Some(pooler) = ledger.pooler() {
                self.health.signal("pooler", Criticality::Degrades).warn(pooler.to_string());
            } else if let Some((name, options)) = &self.share {
                joined.share = Some(name.clone());
                let lease = async || {
                    let share = ConnectionShare::lease_as(fleet, name.clone(), options).await?;
                    share.attach(pool.clone()).await
                };
                let guard = retry.until_done("a share of the server's connections", lease).await?;
                warn_if_unregistered("the share", guard.register(metrics.registry(), "postgres"));
                joined.pool = Some(guard);
            }
            let specs: Vec<MigrationSpec> =
                self.specs.iter().map(|spec| desired_by(spec, flags, source, metrics)).collect();
            let start = async || {
                let (specs, options) = (specs.clone(), self.driver.clone());
                Ok(Agent::start(fleet.clone(), specs, options, &self.health).await?)
            };
            let agent = retry.until_done("the migrations", start).await?;
            warn_if_unregistered("the migrations", agent.register(metrics.registry()));
            joined.agent = Some(Arc::new(agent));
        }
        // The first request should see the current flags, or the last known ones. A flag server that is unavailable does
        // not prevent the start.
        let _ = tokio::time::timeout(FLAGS_WAIT, flags.ready()).await;
        if source == FlagSource::Outside {
            warn_of_problems(flags, &self.declared_flags);
        }
        Ok(())
    }
}

/// The declaration, with the flag as the source of its desired phase.
fn desired_by(
    (spec, flag): &(MigrationSpec, Option<String>),
    flags: &Flags,
    source: FlagSource,
    metrics: &Metrics,
) -> MigrationSpec {
    match flag {
        Some(flag) if source == FlagSource::Outside => {
            let desired = FromFlag::new(flags.clone(), flag);
            warn_if_unregistered("the flag", desired.register(metrics.registry(), &spec.name));
            spec.clone().desired(desired)
        }
        _ => spec.clone(),
    }
}

/// A registry of the service's own may have a family of the same name. That is no reason not to start.
fn warn_if_unregistered(what: &str, registered: Result<(), prometheus::Error>) {
    if let Err(error) = registered {
        tracing::warn!(%error, "could not register the metrics of {what}");
    }
}

fn metrics(
    registry: prometheus::Registry,
    release: &Release,
    buckets: Option<&[Duration]>,
    problems: &mut Vec<Problem>,
) -> Option<Metrics> {
    let Some(buckets) = buckets else {
        return registered(Metrics::in_registry(registry, release), problems);
    };
    match Metrics::with_buckets(registry, release, buckets) {
        Ok(metrics) => Some(metrics),
        Err(MetricsError::Config(error)) => valid(Err(error), problems),
        Err(MetricsError::Registry(error)) => registered(Err(error), problems),
    }
}

/// The value, or `None` and its problems in the list.
fn valid<T>(result: Result<T, ConfigError>, problems: &mut Vec<Problem>) -> Option<T> {
    result.map_err(|error| problems.extend(error.problems)).ok()
}

/// The same for what is registered with Prometheus.
fn registered<T>(result: Result<T, prometheus::Error>, problems: &mut Vec<Problem>) -> Option<T> {
    result.map_err(|error| problems.push(Problem::new("registry", error.to_string()))).ok()
}

/// The problems of an error, which may have more than one.
fn problems_of(field: &'static str, error: BoxError) -> Vec<Problem> {
    match error.downcast::<ConfigError>() {
        Ok(error) => error.problems,
        Err(error) => vec![Problem::new(field, error.to_string())],
    }
}

fn address(name: &'static str, port: u16, environment: &mut Environment) -> Option<SocketAddr> {
    let problems = environment.problems.len();
    let address = environment.value(name, "an address", &format!("[::]:{port}"));
    // A wrong address must not select the default.
    if environment.problems.len() > problems {
        return None;
    }
    Some(address.unwrap_or_else(|| SocketAddr::from(([0_u16; 8], port))))
}

fn drain_options(own: Option<DrainOptions>, environment: &mut Environment) -> DrainOptions {
    let is_own = own.is_some();
    let mut options = own.unwrap_or_default();
    if !is_own && let Some(grace) = environment.seconds("CUTOVER_GRACE_SECONDS") {
        options.grace = grace;
    }
    if !is_own && let Some(propagation) = environment.seconds("CUTOVER_PROPAGATION_SECONDS") {
        options.propagation = propagation;
    }
    if options.secret.is_none()
        && let Some(secret) = environment.text("CUTOVER_DRAIN_SECRET")
    {
        match DrainSecret::new(&secret) {
            Ok(secret) => options.secret = Some(secret),
            Err(error) => {
                error
                    .problems
                    .into_iter()
                    .for_each(|p| environment.problem("CUTOVER_DRAIN_SECRET", p.problem));
            }
        }
    }
    options
}

/// Pods with the same configuration have the same fingerprint: `count(count by (fingerprint) (cutover_config_info)) > 1`
/// finds drift.
fn cutover_config_info(metrics: &Metrics, fingerprint: &str) -> Result<(), prometheus::Error> {
    let gauge = IntGauge::with_opts(
        Opts::new("cutover_config_info", "A fingerprint of the configuration; always 1.")
            .const_label("version", metrics.release().version())
            .const_label("fingerprint", fingerprint),
    )?;
    gauge.set(1);
    metrics.registry().register(Box::new(gauge))
}

/// Only warns: without a flag server the last known state or the defaults are used.
fn freshness(flags: Flags) -> Check {
    Check::new("flags", move || {
        let fresh = flags.is_fresh();
        async move {
            Ok::<_, std::convert::Infallible>(match fresh {
                true => ProbeOutcome::Pass,
                false => ProbeOutcome::Warn("the flag server was not reached lately".into()),
            })
        }
    })
}

fn warn_of_problems(flags: &Flags, declared: &[String]) {
    for problem in flags.coverage(declared.iter().map(String::as_str)) {
        match problem.kind {
            FlagProblemKind::Missing => {
                tracing::warn!(
                    flag = problem.flag,
                    "declared flag does not exist at its source; using its default"
                );
            }
            FlagProblemKind::Stale => {
                tracing::warn!(
                    flag = problem.flag,
                    "flag is marked stale at its source; remove it from the code"
                )
            }
        }
    }
}
