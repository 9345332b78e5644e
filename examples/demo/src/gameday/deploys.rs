//! Deploys at bad moments, and deploys of the wrong thing.

use std::time::{Duration, Instant};

use cutover_testkit::wait_until;

use super::{day::Day, injuries::WAY};
use crate::{
    deploy,
    failure::{Failure, Result},
    proxy::{CANARY, STABLE},
};

const BOUND: Duration = Duration::from_secs(60);
/// How long a build that must not become ready is watched. A good one needs a second or two.
const NOT_READY_FOR: Duration = Duration::from_secs(5);

pub(super) async fn deploy_during_move(day: &mut Day) -> Result<()> {
    for phase in ["backfill", "ramp:50", "retire"] {
        day.ask_for(phase).await?;
        let began = Instant::now();
        let rolled = deploy::roll(&mut day.fleet, &day.customers.stats, 2, 2).await?;
        day.line.notes.push(format!("rolled out in {:.0} s on the way to {phase}", rolled.seconds));
        day.walk.arrive(phase, began).await?;
    }
    Ok(())
}

/// The build before knows nothing of the migration, so it may run in `off` only; the build after has no code for the
/// old side.
pub(super) async fn roll_back(day: &mut Day) -> Result<()> {
    for phase in WAY {
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
    // Now it is the right one.
    day.fleet.start(3, STABLE).await
}

/// Starts an instance of a release that can't run the phase, and sees that it never gets a request.
async fn never_ready(day: &mut Day, release: u8, phase: &str) -> Result<()> {
    day.trouble(format!("an instance of release {release} starts in {phase}"));
    day.fleet.launch(release, CANARY)?;
    day.fleet.tell_proxy(CANARY).await?;
    let instance = day.fleet.instances.last().ok_or_else(|| Failure::new("nothing was started"))?;
    let name = instance.name().to_owned();
    let began = Instant::now();
    let mut said = String::new();
    while began.elapsed() < NOT_READY_FOR || (said.is_empty() && began.elapsed() < BOUND) {
        let instance = day.fleet.find(&name)?;
        if day.fleet.is_ready(instance).await? {
            return Err(Failure::new(format!("{name} became ready in {phase}")));
        }
        said = day.fleet.readiness(instance).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    if phase == "expand" {
        day.line.notes.push(format!("{name}{}", said.trim()));
    }
    day.fleet.bury(&name).await
}

/// Everything is replaced twice, and the second time begins before the first one has ended.
pub(super) async fn two_deploys(day: &mut Day) -> Result<()> {
    day.go("ramp:50").await?;
    day.trouble("two deploys at once");
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

pub(super) async fn settings_missing(day: &mut Day) -> Result<()> {
    for variable in ["REDIS_URL", "DATABASE_URL"] {
        day.trouble(format!("a build without {variable} is rolled out"));
        day.fleet.environment = vec![(variable, None)];
        day.fleet.launch(2, CANARY)?;
        day.fleet.environment.clear();
        let instance = day.fleet.instances.last().ok_or_else(|| Failure::new("nothing was started"))?;
        let name = instance.name().to_owned();
        wait_until("the build to give up", BOUND, async || {
            Ok::<_, Failure>(day.fleet.find(&name)?.process.exited().is_some())
        })
        .await?;
        let said = day.fleet.find(&name)?.process.log_tail();
        if !said.contains(variable) {
            return Err(Failure::new(format!("it did not say that {variable} is missing: {said}")));
        }
        day.line.notes.push(format!("it said: {}", said.trim()));
        day.fleet.bury(&name).await?;
    }
    day.go("ramp:50").await
}
