//! Instances replaced one after another, as an orchestrator does it.

use std::{
    error::Error,
    fmt,
    net::SocketAddr,
    pin::Pin,
    time::{Duration, Instant},
};

use tokio::time::sleep;

use crate::{Endpoint, Envoy, KitError, wait_until};

/// For Envoy's health checks to be good.
const READY: Duration = Duration::from_secs(30);

type Failure = Box<dyn Error + Send + Sync>;

/// An instance and how it is told to leave.
pub struct Replaceable {
    /// Where it is.
    pub endpoint: Endpoint,
    /// Begins its drain when first polled, and ends when the instance has.
    pub leave: Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>,
}

impl fmt::Debug for Replaceable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replaceable").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// Waits until all of these get requests.
///
/// # Errors
///
/// Envoy doesn't answer, or one of them doesn't become healthy.
pub async fn put_behind(envoy: &Envoy, cluster: &str, running: &[Replaceable]) -> Result<(), KitError> {
    let endpoints = running.iter().map(|one| one.endpoint.clone()).collect();
    envoy.set_endpoints(cluster, endpoints).await?;
    for one in running {
        healthy(envoy, cluster, one.endpoint.addr).await?;
    }
    Ok(())
}

/// Replaces the oldest instance `times` times: a new one is started and gets requests, then the old one
/// is told to leave. Envoy learns of that from its readiness only: for the time of two health checks it goes on
/// sending requests there. Between two there is a `rest`. Returns when each began and ended.
///
/// # Errors
///
/// Whatever the start or the leaving of an instance fails with, or [`KitError`] of Envoy.
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
