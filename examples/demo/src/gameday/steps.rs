//! The steps that scenarios are made of: faults, waiting for recovery, and moves of the migration.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use cutover_testkit::{Signal, wait_until};
use sqlx::{AssertSqlSafe, Executor};

use super::{day::Day, outcome::Window};
use crate::{
    failure::{Failure, Result},
    instances,
    load::Load,
    proxy::STABLE,
};

/// Time limit of a recovery: a lease lasts 10 s, and a new process needs some time.
const RECOVERED_WITHIN: Duration = Duration::from_secs(60);

impl Day {
    /// Begins a fault: until recovery, requests may fail because of it.
    pub(crate) fn fault(&mut self, what: impl Into<String>) {
        let what = what.into();
        self.board.doing(format!("{}: {what}", self.outcome.scenario));
        self.fault_at = Instant::now();
        if !self.windows.last().is_some_and(Window::is_open) {
            self.windows.push(Window { why: what, from: self.fault_at, until: None });
        }
    }

    /// Begins a step during which no request may fail.
    pub(crate) fn step(&mut self, what: impl Into<String>) {
        self.board.doing(format!("{}: {}", self.outcome.scenario, what.into()));
        self.fault_at = Instant::now();
    }

    /// Waits until the proxy no longer sends requests to the instance.
    pub(crate) async fn noticed(&mut self, name: &str) -> Result<()> {
        let instance = self.fleet.find(name)?;
        let (cluster, endpoint) = (instance.cluster, instance.endpoint.clone());
        let proxy = &self.servers.proxy;
        wait_until(&format!("the proxy to stop sending requests to {name}"), RECOVERED_WITHIN, async || {
            proxy.is_serving(cluster, &endpoint).await.map(|is_serving| !is_serving)
        })
        .await?;
        self.detected();
        Ok(())
    }

    pub(crate) fn detected(&mut self) {
        longest(&mut self.outcome.seconds_to_detect, self.fault_at.elapsed());
    }

    /// Waits until all instances serve again and requests succeed. After that, no request may fail.
    pub(crate) async fn recovered(&mut self) -> Result<()> {
        let serving = async || {
            for instance in &self.fleet.instances {
                let is_serving = self.servers.proxy.is_serving(instance.cluster, &instance.endpoint).await?;
                if !is_serving || !self.fleet.is_ready(instance).await? {
                    return Ok(false);
                }
            }
            Ok::<_, Failure>(true)
        };
        if let Err(error) = wait_until("all instances to serve again", RECOVERED_WITHIN, serving).await {
            let mut why = error.to_string();
            for instance in &self.fleet.instances {
                why += &format!("\n{}{}", instance.name(), self.fleet.readiness(instance).await);
            }
            return Err(Failure::new(why));
        }
        // A broken connection is noticed only when it is used.
        self.second_without_failure("requests to succeed again").await?;
        longest(&mut self.outcome.seconds_to_recover, self.fault_at.elapsed());
        self.close_window();
        Ok(())
    }

    pub(super) fn close_window(&mut self) {
        if let Some(window) = self.windows.last_mut().filter(|window| window.is_open()) {
            window.until = Some(Instant::now());
        }
    }

    /// Moves to a phase and waits until it is reached.
    pub(crate) async fn go(&mut self, phase: &str) -> Result<()> {
        if phase == "contract" {
            self.walk.ledger.approve_contract().await?;
        }
        self.walk.go(&self.servers.switchboard, phase).await
    }

    /// Sets the desired phase without waiting.
    pub(crate) async fn ask_for(&mut self, phase: &str) -> Result<()> {
        if phase == "contract" {
            self.walk.ledger.approve_contract().await?;
        }
        self.board.doing(format!("{}: desired phase {phase}", self.outcome.scenario));
        self.servers.switchboard.set_phase(phase).await
    }

    /// The name of the instance that drives the migration.
    pub(crate) async fn driver(&self) -> Result<String> {
        found("a driver among the instances", RECOVERED_WITHIN, async || {
            let driver: Option<String> = sqlx::query_scalar(
                "select i.name from cutover.migrations m join cutover.instances i on i.id = m.driver",
            )
            .fetch_optional(&self.servers.database.pool)
            .await?;
            Ok(driver.filter(|name| self.fleet.find(name).is_ok()))
        })
        .await
    }

    /// The name of an instance that is not the driver.
    pub(crate) async fn bystander(&mut self) -> Result<String> {
        let driver = self.driver().await?;
        let others: Vec<&str> = self
            .fleet
            .instances
            .iter()
            .map(instances::Instance::name)
            .filter(|name| *name != driver)
            .collect();
        let chosen = self.random.choice(others).map(str::to_owned);
        chosen.ok_or_else(|| Failure::new("there is only one instance, the driver"))
    }

    pub(crate) fn signal(&self, name: &str, signal: Signal) -> Result<()> {
        Ok(self.fleet.find(name)?.process.signal(signal)?)
    }

    /// Replaces an instance that has ended, as an orchestrator does.
    pub(crate) async fn replace(&mut self, name: &str) -> Result<()> {
        let (release, cluster) = {
            let ended = self.fleet.find(name)?;
            (ended.release, ended.cluster)
        };
        self.fleet.remove(name).await?;
        self.fleet.start(release, cluster).await
    }

    /// Replaces all instances by others of release 2 that have these variables, besides the usual ones.
    pub(crate) async fn replace_all(&mut self, environment: &[(&'static str, String)]) -> Result<()> {
        let old: Vec<String> =
            self.fleet.instances.iter().map(|instance| instance.name().to_owned()).collect();
        self.fleet.environment =
            environment.iter().map(|(name, value)| (*name, Some(value.clone()))).collect();
        self.fleet.start_all(2, STABLE, old.len()).await?;
        self.fleet.environment.clear();
        for name in old {
            self.fleet.stop(&name).await?;
        }
        Ok(())
    }

    /// Runs a statement outside of the service.
    pub(crate) async fn sql(&self, statement: &str) -> Result<u64> {
        Ok(self.servers.database.pool.execute(AssertSqlSafe(statement)).await?.rows_affected())
    }

    /// Fails if the migration has left this phase.
    pub(crate) async fn still_at(&self, phase: &str) -> Result<()> {
        let standing = self.walk.ledger.standing().await?.unwrap_or_default();
        match standing.phase == phase {
            true => Ok(()),
            false => Err(Failure::new(format!("the migration moved to {} without a reason", standing.phase))),
        }
    }

    /// Whether the new side is complete, according to the ledger.
    pub(crate) async fn is_new_complete(&self) -> Result<bool> {
        let complete = sqlx::query_scalar("select new_complete from cutover.migrations");
        Ok(complete.fetch_optional(&self.servers.database.pool).await?.unwrap_or(false))
    }

    /// Waits until no request fails for a second, while an instance is still out.
    pub(crate) async fn served_by_the_others(&mut self) -> Result<()> {
        self.second_without_failure("the other instances to serve all requests").await?;
        self.close_window();
        Ok(())
    }

    async fn second_without_failure(&self, what: &str) -> Result<()> {
        let failed = || self.customers.stats.counts().failed;
        wait_until(what, RECOVERED_WITHIN, async || {
            let before = failed();
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok::<_, Failure>(failed() == before)
        })
        .await?;
        Ok(())
    }

    /// Sends a large request, which is refused, directly to an instance.
    pub(crate) async fn post_large(&self, name: &str) -> Result<()> {
        let url = format!("http://{}/orders", self.fleet.find(name)?.endpoint.address);
        let client = reqwest::Client::builder().timeout(Duration::from_secs(1)).build()?;
        client
            .post(url)
            .header("content-type", "application/json")
            .body(vec![b' '; 1_900_000])
            .send()
            .await?;
        Ok(())
    }

    /// Adds load of `rate` requests per second until the scenario ends.
    pub(crate) fn more_load(&mut self, rate: u32) {
        self.load.push(Load::start(Arc::clone(&self.customers), rate));
    }

    pub(crate) fn restore_unleash(&self) {
        self.gates.unleash.lead_to(self.unleash_port);
        self.gates.unleash.cut();
    }
}

/// Polls until there is a value.
pub(crate) async fn found<T>(
    what: &str,
    limit: Duration,
    mut ask: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let began = Instant::now();
    loop {
        match ask().await {
            Ok(Some(answer)) => return Ok(answer),
            Err(error) if began.elapsed() > limit => return Err(error),
            Ok(None) if began.elapsed() > limit => {
                return Err(Failure::new(format!("waited {} s for {what}", limit.as_secs())));
            }
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

fn longest(seconds: &mut Option<f64>, time: Duration) {
    *seconds = Some(seconds.unwrap_or(0.0).max(time.as_secs_f64()));
}
