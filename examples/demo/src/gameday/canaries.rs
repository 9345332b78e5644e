//! Canaries with and without a fault, each judged by its metrics in Prometheus.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use cutover_testkit::Prometheus;

use super::{day::Day, steps::found};
use crate::{
    failure::{Failure, Result},
    proxy::CANARY,
};

/// Additional load: with 5 % of the requests, a canary needs many to be judged.
const MORE_LOAD: u32 = 800;
const SHARE: u32 = 5;
/// Time limit of the judge.
const WATCH: &str = "90s";

pub(super) async fn errors(day: &mut Day) -> Result<()> {
    judged_bad(day, "errors:2").await
}

pub(super) async fn panics(day: &mut Day) -> Result<()> {
    judged_bad(day, "panics:2").await
}

pub(super) async fn slow(day: &mut Day) -> Result<()> {
    judged_bad(day, "slow:150").await
}

pub(super) async fn leaks(day: &mut Day) -> Result<()> {
    judged_bad(day, "leaks").await
}

pub(super) async fn never_ready(day: &mut Day) -> Result<()> {
    // Without data the judge neither passes nor fails the canary.
    ends_with(day, "never-ready", 3).await
}

pub(super) async fn good(day: &mut Day) -> Result<()> {
    day.go("ramp:50").await?;
    let (status, output) = watch(day, None, Duration::ZERO).await?;
    passes(day, status, &output).await
}

/// Only evidence fails a canary, and a Prometheus that is away gives none.
pub(super) async fn prometheus_restarted(day: &mut Day) -> Result<()> {
    day.go("ramp:50").await?;
    let (status, output) = watch(day, None, Duration::from_secs(4)).await?;
    passes(day, status, &output).await
}

/// The judge has passed the canary, which is promoted.
async fn passes(day: &mut Day, status: Option<i32>, output: &str) -> Result<()> {
    if status != Some(0) {
        return Err(Failure::new(format!("cutover canary exited with {status:?}: {output}")));
    }
    day.step("the canary is promoted");
    day.servers.proxy.set_canary_share(100).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    remove_canary(day).await
}

/// Deploys a canary with a fault, which the judge has to fail.
async fn judged_bad(day: &mut Day, fault: &str) -> Result<()> {
    ends_with(day, fault, 1).await
}

/// Deploys a canary with a fault. The judge has to exit with this status; then the canary is removed.
async fn ends_with(day: &mut Day, fault: &str, expected: i32) -> Result<()> {
    day.go("ramp:50").await?;
    let (status, output) = watch(day, Some(fault), Duration::ZERO).await?;
    day.detected();
    remove_canary(day).await?;
    day.recovered().await?;
    if status != Some(expected) {
        return Err(Failure::new(format!("cutover canary exited with {status:?}: {output}")));
    }
    let why = output.lines().filter(|line| line.starts_with("FAIL ")).map(str::to_owned);
    day.outcome.notes.extend(why.collect::<Vec<_>>());
    day.note_bad_answers();
    Ok(())
}

/// Starts a canary, gives it its share of the requests, and runs the judge. Prometheus is `away` for a while.
async fn watch(day: &mut Day, fault: Option<&str>, away: Duration) -> Result<(Option<i32>, String)> {
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
    // Prometheus needs two scrapes.
    tokio::time::sleep(Duration::from_secs(2)).await;
    match fault {
        Some(fault) => day.fault(format!("a canary with fault {fault} gets {SHARE} % of the requests")),
        None => day.step(format!("a canary gets {SHARE} % of the requests")),
    }
    day.servers.proxy.set_canary_share(SHARE).await?;
    let arguments =
        ["--watch", WATCH, "--every", "500ms", "--window", "15s", "--patience", "15s", "--worse", "3"];
    let url = prometheus.url();
    let (judged, restarted) = tokio::join!(day.judge_canary(&url, &arguments), async {
        if !away.is_zero() {
            tokio::time::sleep(Duration::from_secs(5)).await;
            prometheus.process().kill().await?;
            tokio::time::sleep(away).await;
            prometheus.restart().await?;
        }
        Ok::<_, Failure>(())
    });
    restarted?;
    let judged = judged?;
    Ok((judged.status, judged.output))
}

/// Takes the canary's requests away, then stops it, or kills it if it is not ready.
async fn remove_canary(day: &mut Day) -> Result<()> {
    day.servers.proxy.set_canary_share(0).await?;
    for name in day.fleet.of_release(2, CANARY) {
        if day.fleet.is_ready(day.fleet.find(&name)?).await? {
            day.fleet.stop(&name).await?;
        } else {
            day.fleet.remove(&name).await?;
        }
    }
    Ok(())
}

/// The new payment flow is broken in all instances, and its flag is switched off.
pub(super) async fn flag_off(day: &mut Day) -> Result<()> {
    day.replace_all(&[("FAULT", "new-flow".to_owned())]).await?;
    day.more_load(MORE_LOAD);
    day.fault("20 % of the payments use the new flow, which is broken");
    day.servers.switchboard.new_flow(20).await?;
    found("the new flow to fail", Duration::from_secs(30), async || {
        Ok((day.customers.stats.counts().failed > 20).then_some(()))
    })
    .await?;
    let flipped = Instant::now();
    day.servers.switchboard.new_flow(0).await?;
    day.recovered().await?;
    let last = day.customers.stats.failed_requests().last().map(|failed| failed.at);
    let seconds = last.map_or(0.0, |last| last.saturating_duration_since(flipped).as_secs_f64());
    day.outcome.notes.push(format!("last bad answer {seconds:.2} s after the flag was switched off"));
    day.note_bad_answers();
    Ok(())
}
