//! Replaces instances one after another, as an orchestrator does.

use std::{
    error::Error,
    fmt,
    net::SocketAddr,
    pin::Pin,
    time::{Duration, Instant},
};

use tokio::time::sleep;

use crate::{Endpoint, Envoy, KitError, wait_until};

/// Time limit for Envoy's health checks to succeed.
const READY: Duration = Duration::from_secs(60);

type Failure = Box<dyn Error + Send + Sync>;

/// An instance that can be replaced.
pub struct Replaceable {
    /// Its addresses.
    pub endpoint: Endpoint,
    /// Begins its drain when first polled, and completes when the instance has ended.
    pub leave: Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>,
}

impl fmt::Debug for Replaceable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replaceable").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// Waits until all of these instances get requests.
///
/// # Errors
///
/// Envoy does not respond, or an instance does not become healthy.
pub async fn put_behind(envoy: &Envoy, cluster: &str, running: &[Replaceable]) -> Result<(), KitError> {
    let endpoints = running.iter().map(|one| one.endpoint.clone()).collect();
    envoy.set_endpoints(cluster, endpoints).await?;
    for one in running {
        healthy(envoy, cluster, one.endpoint.addr).await?;
    }
    Ok(())
}

/// Replaces the oldest instance `times` times: starts a new one, waits until it gets requests, then drains the old
/// one. Envoy notices the drain by readiness only, so it still sends requests there for two health checks. Waits for
/// `rest` after each replacement. Returns when each one began and ended.
///
/// # Errors
///
/// The error of the start or of the drain of an instance, or [`KitError`] of Envoy.
pub async fn rolling_restarts(
    envoy: &Envoy,
    cluster: &str,
    mut running: Vec<Replaceable>,
    times: usize,
    rest: Duration,
    start: impl AsyncFn(usize) -> Result<Replaceable, Failure>,
) -> Result<Vec<(Instant, Instant)>, Failure> {
    let mut restarts = Vec::new();
    for number in 0..times {
        sleep(rest).await;
        let began = Instant::now();
        let new = start(number).await?;
        running.push(new);
        put_behind(envoy, cluster, &running).await?;
        let old = running.remove(0);
        old.leave.await?;
        put_behind(envoy, cluster, &running).await?;
        restarts.push((began, Instant::now()));
    }
    sleep(rest).await;
    Ok(restarts)
}

async fn healthy(envoy: &Envoy, cluster: &str, address: SocketAddr) -> Result<(), KitError> {
    wait_until("a healthy instance", READY, async || {
        Ok::<_, KitError>(envoy.healthy(cluster).await?.contains(&address))
    })
    .await
}
