use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prometheus::{IntGauge, Opts};
use sqlx::PgPool;

use super::desired::FromFlag;
use super::environment::{Environment, Output};
use super::instance::SubjectOf;
use super::{Cutover, Instance, StartError, pools};
use crate::drain::{Drain, DrainOptions};
use crate::flags::{FlagProblemKind, Flags};
use crate::fleet::{Fleet, FleetOptions};
use crate::health::{Check, Health, ProbeOutcome};
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::migration::{Agent, DriverOptions, MigrationSpec};
use crate::pool::{ConnectionShare, PoolWaitMetrics, ShareOptions};
use crate::preflight::{Preflight, PreflightReport};
use crate::release::Release;

/// How long a start waits for the flags.
const FLAGS_WAIT: Duration = Duration::from_secs(2);

/// The parts of an instance, as far as they can be made without asking anybody, and what is wrong with the rest.
pub(super) struct Assembly {
    pub(super) preflight: Option<Output>,
    problems: Vec<String>,
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
    /// And whether somebody turns them outside of this process.
    flags: Option<(Flags, bool)>,
    #[cfg(feature = "unleash")]
    kept: super::kept::InLedger,
    declared_flags: Vec<String>,
    subject: SubjectOf,
    checks: Vec<Check>,
    specs: Vec<(MigrationSpec, Option<String>)>,
    fleet: FleetOptions,
    driver: DriverOptions,
}

impl Assembly {
    pub(super) fn new(builder: Cutover, mut environment: Environment) -> Self {
        let preflight = environment.preflight();
        let listen = builder.listen.or_else(|| address("LISTEN_ADDR", 8080, &mut environment));
        let admin = builder.admin.or_else(|| address("ADMIN_ADDR", 9090, &mut environment));
        let drain_options = builder.drain.unwrap_or_else(|| drain_options(&mut environment));
        let (postgres, share) = match pools::postgres(builder.postgres, &builder.service, &mut environment) {
            Some(made) => (Some(made.pool), made.share),
            None => (None, None),
        };
        #[cfg(feature = "redis")]
        let redis = pools::redis(builder.redis, &mut environment);
        let problems = &mut environment.problems;
        let release =
            noted(builder.release.map_or_else(|| Release::from_env(&builder.service), Ok), problems);
        let mut specs = Vec::new();
        if postgres.is_none() && !builder.migrations.is_empty() {
            problems.push(
                "migration: needs the service's Postgres, set with `postgres` or `postgres_from_env`".into(),
            );
        }
        for (declaration, flag) in builder.migrations {
            if let Some(pool) = &postgres
                && let Some(spec) = noted(declaration(pool), problems)
            {
                specs.push((spec, flag));
            }
        }
        let declared = format!(
            "{drain_options:?} {:?} {:?} {:?} {:?}",
            builder.fleet,
            builder.driver,
            builder.declared_flags,
            specs.iter().map(|(spec, flag)| (&spec.name, spec.range, flag)).collect::<Vec<_>>()
        );
        let health = Health::new();
        let drain = noted(Drain::new(&health, drain_options), problems);
        let metrics = release
            .as_ref()
            .and_then(|release| noted(Metrics::in_registry(builder.registry, release), problems));
        let mut assembly = Self {
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

    /// The flags, and whether somebody turns them outside of this process.
    #[cfg_attr(not(feature = "unleash"), expect(unused_variables, reason = "only Unleash has an address"))]
    fn take_flags(&self, own: Option<Flags>, environment: &mut Environment) -> Option<(Flags, bool)> {
        if let Some(flags) = own {
            return Some((flags, true));
        }
        #[cfg(feature = "unleash")]
        if let Some(url) = environment.text("UNLEASH_URL") {
            let release = self.release.as_ref()?;
            let token = environment.text("UNLEASH_TOKEN").unwrap_or_default();
            let mut options =
                crate::flags::UnleashOptions::new(url, token, release.service(), release.instance());
            if self.postgres.is_some() && self.preflight.is_none() {
                options.backup = Some(Arc::new(self.kept.clone()));
            }
            return noted(Flags::unleash(options), &mut environment.problems).map(|flags| (flags, true));
        }
        tracing::info!(service = self.service, "no flag server: every flag has its default");
        let none: [(&str, crate::flags::FixedFlag); 0] = [];
        Some((Flags::fixed(none), false))
    }

    /// Registers metrics and checks.
    fn connect_parts(&mut self) {
        let problems = &mut self.problems;
        if let Some(metrics) = &self.metrics {
            noted(cutover_config_info(metrics, &self.fingerprint), problems);
            if let Some((flags, _)) = &self.flags {
                noted(flags.register(metrics.registry(), metrics.release()), problems);
            }
        }
        let flags = self.flags.as_ref().map(|(flags, _)| freshness(flags.clone()));
        for check in self.checks.iter().cloned().chain(flags) {
            noted(self.health.check(check), problems);
        }
    }

    pub(super) async fn look(self) -> PreflightReport {
        // Its probes would be a second of each.
        self.health.close();
        let mut preflight = Preflight::new().fingerprint(self.fingerprint);
        for problem in self.problems {
            preflight = preflight.problem("configuration", problem);
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
        let source = self.flags.and_then(|(flags, from_server)| from_server.then_some(flags));
        let report = preflight.flags(source.clone(), self.declared_flags).run().await;
        if let Some(flags) = source {
            flags.close().await;
        }
        report
    }

    /// Connects and joins, unless it is told to end before it has.
    pub(super) async fn start(self) -> Result<Instance, StartError> {
        let Some(drain) = self.drain.clone() else { return Err(StartError::Configuration(self.problems)) };
        // The first process of a container that has no handler yet never hears of a SIGTERM, and any other ends by it.
        if let Err(error) = drain.on_signals() {
            tracing::warn!(%error, "signals are not heard during the start");
        }
        tokio::select! {
            started = self.join() => started,
            () = drain.begun() => Err(StartError::Interrupted),
        }
    }

    async fn join(self) -> Result<Instance, StartError> {
        let (
            Some(release),
            Some(drain),
            Some(metrics),
            Some((flags, from_server)),
            Some(listen),
            Some(admin),
            true,
        ) = (
            self.release,
            self.drain,
            self.metrics,
            self.flags,
            self.listen,
            self.admin,
            self.problems.is_empty(),
        )
        else {
            return Err(StartError::Configuration(self.problems));
        };
        let mut held = None;
        let agent = match &self.postgres {
            None => None,
            Some(pool) => {
                let name = format!("cutover {}", release.instance());
                let options = (*pool.connect_options()).clone().application_name(&name);
                let ledger = Ledger::open(options).await?;
                #[cfg(feature = "unleash")]
                self.kept.opened(&ledger, release.service());
                let fleet = Fleet::join(ledger, &release, self.fleet, &self.health).await?;
                if let Some((name, options)) = self.share {
                    let share = ConnectionShare::lease_as(&fleet, name, &options).await?;
                    held = Some(share.hold(pool.clone()).await?);
                }
                let specs = self.specs.into_iter().map(|(mut spec, flag)| {
                    if let (Some(flag), true) = (flag, from_server) {
                        spec = spec.desired(FromFlag::new(flags.clone(), &flag));
                    }
                    spec
                });
                let agent = Agent::start(fleet, specs.collect(), self.driver, &self.health).await?;
                if let Err(error) = agent.register(metrics.registry()) {
                    tracing::warn!(%error, "the work on the data has no metrics");
                }
                Some(Arc::new(agent))
            }
        };
        // The first request shall find the state of now, or the last one that was kept; a flag server that is
        // away is no reason not to start.
        let _ = tokio::time::timeout(FLAGS_WAIT, flags.ready()).await;
        if from_server {
            warn_of_gaps(&flags, &self.declared_flags);
        }
        let admission = held.as_ref().and_then(|guard| {
            let waits = PoolWaitMetrics::register(&metrics, "postgres");
            let waits = waits.inspect_err(|error| tracing::warn!(%error, "waits have no metrics")).ok()?;
            Some(guard.admission(pools::WAIT, waits))
        });
        #[cfg(feature = "redis")]
        let sessions = self.redis.clone().map(crate::session::RedisStore::with_defaults);
        #[cfg(feature = "redis")]
        if let Some(sessions) = &sessions
            && let Err(error) = sessions.register(metrics.registry())
        {
            tracing::warn!(%error, "session conflicts have no metric");
        }
        let instance = Instance {
            release,
            listen,
            admin,
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
        };
        instance.leave_when_drained(held);
        Ok(instance)
    }
}

/// The value, or `None` and its error among the problems.
fn noted<T, E: std::fmt::Display>(result: Result<T, E>, problems: &mut Vec<String>) -> Option<T> {
    result.map_err(|error| problems.push(error.to_string())).ok()
}

fn address(name: &'static str, port: u16, environment: &mut Environment) -> Option<SocketAddr> {
    let problems = environment.problems.len();
    let address = environment.value(name, "address", &format!("0.0.0.0:{port}"));
    // One that was wrong is no reason to listen somewhere else.
    if environment.problems.len() > problems {
        return None;
    }
    Some(address.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], port))))
}

fn drain_options(environment: &mut Environment) -> DrainOptions {
    let mut options = DrainOptions::default();
    if let Some(grace) = environment.seconds("CUTOVER_GRACE_SECONDS") {
        options.grace = grace;
    }
    if let Some(propagation) = environment.seconds("CUTOVER_PROPAGATION_SECONDS") {
        options.propagation = propagation;
    }
    options
}

/// Pods that are configured alike have the same one: `count(count by (fingerprint) (cutover_config_info)) > 1` is drift.
fn cutover_config_info(metrics: &Metrics, fingerprint: &str) -> Result<(), prometheus::Error> {
    let gauge = IntGauge::with_opts(
        Opts::new("cutover_config_info", "A number for the configuration; always 1.")
            .const_label("version", metrics.release().version())
            .const_label("fingerprint", fingerprint),
    )?;
    gauge.set(1);
    metrics.registry().register(Box::new(gauge))
}

/// The last known state or the defaults serve while it is not fresh; a start must not hang on it.
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

fn warn_of_gaps(flags: &Flags, declared: &[String]) {
    for problem in flags.coverage(declared.iter().map(String::as_str)) {
        match problem.kind {
            FlagProblemKind::Missing => {
                tracing::warn!(flag = problem.flag, "declared, but the source has none: its default counts");
            }
            FlagProblemKind::Stale => {
                tracing::warn!(flag = problem.flag, "stale at the source: remove it from the code")
            }
        }
    }
}
