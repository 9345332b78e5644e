use std::sync::Arc;
use std::time::Duration;

use super::{Assembly, FlagSource};
use crate::ConfigError;
use crate::flags::{FlagProblemKind, Flags};
use crate::fleet::Fleet;
use crate::front::admin::AdminServer;
use crate::front::desired::FromFlag;
use crate::front::startup::{Joined, Retry};
use crate::front::{Instance, StartError, pools};
use crate::health::{Criticality, Signal};
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::migration::{Agent, MigrationSpec};
use crate::pool::{ConnectionShare, PoolWaitMetrics, ShareError};
use crate::release::Release;

/// How long a start waits for the flags.
const FLAGS_WAIT: Duration = Duration::from_secs(2);

impl Assembly {
    /// Serves the admin pages, connects, and joins the fleet.
    pub(in crate::front) async fn start(self) -> Result<Instance, StartError> {
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
        let sessions =
            self.redis.clone().map(|redis| crate::session::RedisStore::of_service(redis, release.service()));
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
            let open = || async {
                let ledger = Ledger::open(options.clone()).await?;
                match ledger.pooler().and_then(|pooler| pooler.refusal(self.unnamed_statements)) {
                    Some(reason) => Err(ShareError::Pooler { reason }),
                    None => Ok(ledger),
                }
            };
            let ledger = retry.until_done("the ledger", open).await?;
            #[cfg(feature = "console")]
            self.console.attach(ledger.clone(), options.clone());
            #[cfg(feature = "unleash")]
            self.kept.opened(&ledger, release.service());
            let join = || async {
                let options = self.fleet.clone();
                Ok(Fleet::join(ledger.clone(), release, options, &self.health).await?)
            };
            let fleet = &*joined.fleet.insert(retry.until_done("the fleet", join).await?);
            warn_if_unregistered("the lease", fleet.register(metrics.registry()));
            if let Some(pooler) = ledger.pooler() {
                self.health.signal("pooler", Criticality::Degrades).warn(pooler.to_string());
            } else if let Some((name, options)) = &self.share {
                joined.share = Some(name.clone());
                let lease = || async {
                    let share = ConnectionShare::lease_as(fleet, name.clone(), options).await?;
                    share.attach(pool.clone()).await
                };
                let guard = retry.until_done("a share of the server's connections", lease).await?;
                warn_if_unregistered("the share", guard.register(metrics.registry(), "postgres"));
                joined.pool = Some(guard);
            }
            let specs: Vec<MigrationSpec> =
                self.specs.iter().map(|spec| desired_by(spec, flags, source, metrics)).collect();
            let start = || async {
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
