mod settings;
mod start;

use std::net::SocketAddr;

use sqlx::PgPool;

use self::settings::{
    address, cutover_config_info, drain_options, freshness, metrics, problems_of, registered, valid,
};
use super::environment::{Environment, Output};
use super::instance::SubjectOf;
use super::{Cutover, pools};
use crate::Problem;
#[cfg(feature = "unleash")]
use crate::config::remember;
use crate::drain::Drain;
use crate::flags::Flags;
use crate::fleet::FleetOptions;
use crate::health::{Check, Health};
use crate::metrics::Metrics;
use crate::migration::{DriverOptions, MigrationSpec, check_specs};
use crate::pool::ShareOptions;
use crate::preflight::{Preflight, PreflightReport};
use crate::release::Release;

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
    unnamed_statements: bool,
    share: Option<(String, ShareOptions)>,
    #[cfg(feature = "redis")]
    redis: Option<crate::redis::RedisPool>,
    flags: Option<(Flags, FlagSource)>,
    #[cfg(feature = "unleash")]
    kept: crate::front::kept::InLedger,
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
    /// A flag server, or the source that the service supplied.
    Outside,
    /// There is no source: every flag has its default.
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
        let unnamed_statements =
            builder.unnamed_statements || environment.switch("CUTOVER_UNNAMED_STATEMENTS");
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
        let metrics = release
            .as_ref()
            .and_then(|release| metrics(builder.registry, release, builder.buckets.as_deref(), problems));
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
            unnamed_statements,
            share,
            #[cfg(feature = "redis")]
            redis,
            flags: None,
            #[cfg(feature = "unleash")]
            kept: crate::front::kept::InLedger::default(),
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

    #[cfg(test)]
    pub(super) fn problems(&self) -> &[Problem] {
        &self.problems
    }

    fn take_flags(&self, own: Option<Flags>, environment: &mut Environment) -> Option<(Flags, FlagSource)> {
        if let Some(flags) = own {
            return Some((flags, FlagSource::Outside));
        }
        #[cfg(feature = "unleash")]
        if let Some(url) = environment.text("UNLEASH_URL") {
            let release = self.release.as_ref()?;
            let token = environment.text("UNLEASH_TOKEN").unwrap_or_default();
            remember(&token);
            let mut options =
                crate::flags::UnleashOptions::new(url, token, release.service(), release.instance());
            if self.postgres.is_some() && self.preflight.is_none() {
                options.backup = Some(std::sync::Arc::new(self.kept.clone()));
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
        // The service may have a client of its own, but then it declares no flags here.
        #[cfg(not(feature = "unleash"))]
        if !self.declared_flags.is_empty() && environment.text("UNLEASH_URL").is_some() {
            let problem = "is set, but this build has no client of Unleash, so every flag would have its default; \
                compile `cutover` with the cargo feature `unleash`, or unset the variable";
            environment.problem("UNLEASH_URL", problem);
            return None;
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
            if self.unnamed_statements {
                preflight = preflight.unnamed_statements();
            }
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
}
