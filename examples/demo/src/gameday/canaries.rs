//! Canaries with a mistake in them, and one without, each judged by what Prometheus has of it.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use cutover_testkit::Prometheus;

use super::day::{Day, found};
use crate::{
    failure::{Failure, Result},
    proxy::CANARY,
};

/// Added to the usual load: at 5 % a canary needs many requests to show anything.
const MORE_LOAD: u32 = 800;
const SHARE: u32 = 5;
/// How long the judge looks at most.
const WATCH: &str = "90s";

pub(super) async fn errors(day: &mut Day) -> Result<()> {
    taken_back(day, "errors:2").await
}

pub(super) async fn panics(day: &mut Day) -> Result<()> {
    taken_back(day, "panics:2").await
}

pub(super) async fn slow(day: &mut Day) -> Result<()> {
    taken_back(day, "slow:150").await
}

pub(super) async fn leaks(day: &mut Day) -> Result<()> {
    taken_back(day, "leaks").await
}

pub(super) async fn never_ready(day: &mut Day) -> Result<()> {
    // No data is no evidence: the judge neither passes nor fails it.
    taken_back_with(day, "never-ready", 3).await
}

pub(super) async fn fine(day: &mut Day) -> Result<()> {
    day.go("ramp:50").await?;
    let (status, said) = watch(day, None).await?;
    if status != Some(0) {
        return Err(Failure::new(format!("the judge ended with {status:?}: {said}")));
    }
    day.trouble("the canary is promoted");
    day.servers.proxy.set_canary_share(100).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    put_away(day).await
}

/// Deploys a canary with a mistake; the judge has to fail it, and the weights go back.
async fn taken_back(day: &mut Day, fault: &str) -> Result<()> {
    taken_back_with(day, fault, 1).await
}

/// Deploys a canary with a mistake; the judge has to end with this status, and the weights go back.
async fn taken_back_with(day: &mut Day, fault: &str, expected: i32) -> Result<()> {
    day.go("ramp:50").await?;
    let (status, said) = watch(day, Some(fault)).await?;
    day.detected();
    put_away(day).await?;
    day.recovered().await?;
    if status != Some(expected) {
        return Err(Failure::new(format!("the judge ended with {status:?}: {said}")));
    }
    let why = said.lines().filter(|line| line.starts_with("FAIL ")).map(str::to_owned);
    day.line.notes.extend(why.collect::<Vec<_>>());
    day.note_bad_answers();
    Ok(())
}

/// Gives a canary its share and lets the judge watch it.
async fn watch(day: &mut Day, fault: Option<&str>) -> Result<(Option<i32>, String)> {
    day.more_load(MORE_LOAD);
    let pages = |day: &Day| -> Vec<SocketAddr> {
        day.fleet.instances.iter().map(|instance| instance.endpoint.health).collect()
    };
    day.fleet.environment = vec![("FAULT", fault.map(str::to_owned))];
    if fault == Some("never-ready") {
        day.fleet.launch(2, CANARY)?;
        day.fleet.tell_proxy(CANARY).await?;
    } else {
        day.fleet.start(2, CANARY).await?;
    }
    day.fleet.environment.clear();
    let prometheus = Prometheus::start(pages(day), Duration::from_millis(500)).await?;
    // The first scrapes.
    tokio::time::sleep(Duration::from_secs(2)).await;
    match fault {
        Some(fault) => day.fault(format!("a canary with the mistake {fault} gets {SHARE} %")),
        None => day.trouble(format!("a canary gets {SHARE} %")),
    }
    day.servers.proxy.set_canary_share(SHARE).await?;
    let arguments =
        ["--watch", WATCH, "--every", "500ms", "--window", "15s", "--patience", "15s", "--worse", "3"];
    let judged = day.judge_canary(&prometheus.url(), &arguments).await?;
    Ok((judged.status, judged.said))
}

/// Requests first, then the canary itself, however it is.
async fn put_away(day: &mut Day) -> Result<()> {
    day.servers.proxy.set_canary_share(0).await?;
    for name in day.fleet.of_release(2, CANARY) {
        if day.fleet.is_ready(day.fleet.find(&name)?).await? {
            day.fleet.stop(&name).await?;
        } else {
            day.fleet.bury(&name).await?;
        }
    }
    Ok(())
}

/// The new payment flow is broken everywhere; a person switches its flag off.
pub(super) async fn flag_off(day: &mut Day) -> Result<()> {
    let old: Vec<String> = day.fleet.instances.iter().map(|instance| instance.name().to_owned()).collect();
    day.fleet.environment = vec![("FAULT", Some("new-flow".to_owned()))];
    day.fleet.start_all(2, crate::proxy::STABLE, old.len()).await?;
    day.fleet.environment.clear();
    for name in old {
        day.fleet.stop(&name).await?;
    }
    day.more_load(MORE_LOAD);
    day.fault("a fifth of all payments goes through a new flow that is broken");
    day.servers.switchboard.new_flow(20).await?;
    found("the new flow to fail", Duration::from_secs(30), async || {
        Ok((day.customers.stats.counts().failed > 20).then_some(()))
    })
    .await?;
    let flipped = Instant::now();
    day.servers.switchboard.new_flow(0).await?;
    day.recovered().await?;
    let last = day.customers.stats.failed_ones().last().map(|failed| failed.at);
    let seconds = last.map_or(0.0, |last| last.saturating_duration_since(flipped).as_secs_f64());
    day.line.notes.push(format!("last bad answer {seconds:.2} s after the flag was switched off"));
    day.note_bad_answers();
    Ok(())
}
