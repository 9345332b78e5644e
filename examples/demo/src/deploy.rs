//! A rolling deploy: first a canary, then one instance after the other.

use std::time::{Duration, Instant};

use crate::{
    failure::{Failure, Result},
    instances::Fleet,
    proxy::{CANARY, STABLE},
    report::DeployReport,
    stats::Stats,
};

/// How long the canary gets each share of the requests.
const WATCH: Duration = Duration::from_secs(5);

/// Replaces every instance of release `from`. If requests fail during the canary, it is removed and the deploy ends.
pub(crate) async fn roll(fleet: &mut Fleet, stats: &Stats, from: u8, to: u8) -> Result<DeployReport> {
    let (began, failed_before) = (Instant::now(), stats.counts().failed);
    fleet.board.doing(format!("deploy of release {to}: starting a canary"));
    fleet.start(to, CANARY).await?;
    for percent in [5, 25] {
        fleet.servers.proxy.set_canary_share(percent).await?;
        fleet.board.doing(format!("deploy of release {to}: {percent} % to the canary"));
        tokio::time::sleep(WATCH).await;
        let failed = stats.counts().failed - failed_before;
        if failed > 0 {
            remove_canary(fleet, to).await?;
            return Err(Failure::new(format!(
                "{failed} requests failed while release {to} had {percent} % of them; the canary was removed"
            )));
        }
    }
    for old in fleet.of_release(from, STABLE) {
        fleet.board.doing(format!("deploy of release {to}: replacing {old}"));
        fleet.start(to, STABLE).await?;
        fleet.stop(&old).await?;
    }
    remove_canary(fleet, to).await?;
    let report = DeployReport {
        from,
        to,
        seconds: began.elapsed().as_secs_f64(),
        failed: stats.counts().failed - failed_before,
    };
    fleet
        .board
        .note(format!("release {to} deployed in {:.1} s, {} requests failed", report.seconds, report.failed));
    Ok(report)
}

/// Takes the canary's requests away first, then the instance.
async fn remove_canary(fleet: &mut Fleet, release: u8) -> Result<()> {
    fleet.servers.proxy.set_canary_share(0).await?;
    for canary in fleet.of_release(release, CANARY) {
        fleet.stop(&canary).await?;
    }
    Ok(())
}
