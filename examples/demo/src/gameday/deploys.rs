//! Deploys during moves, and deploys of wrong builds.

use std::time::{Duration, Instant};

use cutover_testkit::wait_until;

use super::{day::Day, instance_faults::PHASES_IN_ORDER};
use crate::{
    deploy,
    failure::{Failure, Result},
    proxy::{CANARY, STABLE},
};

const BOUND: Duration = Duration::from_secs(60);
/// How long a build that must not become ready is observed. A correct one is ready within two seconds.
const NOT_READY_FOR: Duration = Duration::from_secs(5);

pub(super) async fn deploy_during_move(day: &mut Day) -> Result<()> {
    for phase in ["backfill", "ramp:50", "retire"] {
        day.ask_for(phase).await?;
        let began = Instant::now();
        let rolled = deploy::roll(&mut day.fleet, &day.customers.stats, 2, 2).await?;
        day.outcome.notes.push(format!("deployed in {:.0} s during the move to {phase}", rolled.seconds));
        day.walk.arrive(phase, began).await?;
    }
    Ok(())
}

/// Deploys release 1, which does not declare the migration and can therefore run `off` only.
pub(super) async fn roll_back(day: &mut Day) -> Result<()> {
    for phase in PHASES_IN_ORDER {
        day.go(phase).await?;
        never_ready(day, 1, phase).await?;
    }
    Ok(())
}

pub(super) async fn wrong_range(day: &mut Day) -> Result<()> {
    for phase in ["expand", "backfill", "verify", "ramp:50", "switch"] {
        never_ready(day, 3, phase).await?;
        day.go(phase).await?;
    }
    day.go("retire").await?;
    // From `retire` on, release 3 can run.
    day.fleet.start(3, STABLE).await
}

/// Starts an instance of a release that cannot run the phase, and checks that it does not become ready.
async fn never_ready(day: &mut Day, release: u8, phase: &str) -> Result<()> {
    day.step(format!("starting an instance of release {release} in {phase}"));
    day.fleet.launch(release, CANARY)?;
    day.fleet.tell_proxy(CANARY).await?;
    let instance = day.fleet.instances.last().ok_or_else(|| Failure::new("no instance was started"))?;
    let name = instance.name().to_owned();
    let began = Instant::now();
    let mut reason = String::new();
    while began.elapsed() < NOT_READY_FOR || (reason.is_empty() && began.elapsed() < BOUND) {
        let instance = day.fleet.find(&name)?;
        if day.fleet.is_ready(instance).await? {
            return Err(Failure::new(format!("{name} became ready in {phase}")));
        }
        reason = day.fleet.readiness(instance).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    if phase == "expand" {
        day.outcome.notes.push(format!("{name}{}", reason.trim()));
    }
    day.fleet.remove(&name).await
}

/// Replaces all instances twice; the second deploy begins before the first one has ended.
pub(super) async fn two_deploys(day: &mut Day) -> Result<()> {
    day.go("ramp:50").await?;
    day.step("two deploys at once");
    let first = day.fleet.of_release(2, STABLE);
    day.fleet.start_all(2, STABLE, 2).await?;
    let second = day.fleet.of_release(2, STABLE);
    for (number, old) in first.iter().enumerate() {
        day.fleet.stop(old).await?;
        if number == 0 {
            day.fleet.start_all(2, STABLE, 3).await?;
        }
    }
    for old in second.iter().filter(|name| !first.contains(name)) {
        day.fleet.stop(old).await?;
    }
    day.go("retire").await
}

pub(super) async fn missing_settings(day: &mut Day) -> Result<()> {
    for variable in ["REDIS_URL", "DATABASE_URL"] {
        day.step(format!("deploying an instance without {variable}"));
        day.fleet.environment = vec![(variable, None)];
        day.fleet.launch(2, CANARY)?;
        day.fleet.environment.clear();
        let instance = day.fleet.instances.last().ok_or_else(|| Failure::new("no instance was started"))?;
        let name = instance.name().to_owned();
        wait_until("the instance to exit", BOUND, async || {
            Ok::<_, Failure>(day.fleet.find(&name)?.process.exited().is_some())
        })
        .await?;
        let log = day.fleet.find(&name)?.process.log_tail();
        if !log.contains(variable) {
            return Err(Failure::new(format!(
                "the instance did not report that {variable} is missing: {log}"
            )));
        }
        day.outcome.notes.push(format!("its log: {}", log.trim()));
        day.fleet.remove(&name).await?;
    }
    day.go("ramp:50").await
}
