use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use axum::Router;
use axum::routing::get;
use cutover::drain::{Drain, DrainOptions};
use cutover::health::Health;
use cutover_testkit::{Cluster, Endpoint, Envoy, Load, Replaceable, Shot, put_behind, rolling_restarts};
use tokio::net::TcpListener;

use super::table::Table;
use super::timing::quantile;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const INSTANCES: usize = 3;
const CLUSTER: &str = "stable";
/// Pause between two restarts, to measure latency without one.
const REST: Duration = Duration::from_secs(1);

/// How an instance leaves.
#[derive(Clone, Copy)]
enum Leaves {
    /// With this library's drain.
    Drained,
    /// With axum's graceful shutdown.
    Axum,
}

async fn instance(leaves: Leaves) -> Result<Replaceable, Failure> {
    let health = Health::new();
    let options = DrainOptions {
        grace: Duration::from_secs(15),
        propagation: Duration::from_secs(1),
        hook_time: Duration::from_millis(200),
        margin: Duration::from_millis(100),
        ..DrainOptions::default()
    };
    let drain = Drain::new(&health, options)?;
    let app = Router::new().route("/", get(|| async { "hello" }));
    let public = TcpListener::bind("127.0.0.1:0").await?;
    let admin = TcpListener::bind("127.0.0.1:0").await?;
    let (addr, ready_at) = (public.local_addr()?, admin.local_addr()?);
    let pages = tokio::spawn({
        let (drain, pages) = (drain.clone(), health.router());
        async move { drain.serve_admin(admin, pages).await }
    });
    let serving = tokio::spawn({
        let drain = drain.clone();
        async move {
            match leaves {
                Leaves::Drained => drain.serve(public, app).await.map(|_| ()),
                Leaves::Axum => {
                    axum::serve(public, app).with_graceful_shutdown(async move { drain.begun().await }).await
                }
            }
        }
    });
    let leave = Box::pin(async move {
        drain.begin();
        serving.await??;
        pages.await??;
        Ok(())
    });
    Ok(Replaceable { endpoint: Endpoint { name: addr.to_string(), addr, health: ready_at }, leave })
}

pub(crate) async fn run(quick: bool, restarts: usize, rate: u32) -> Result<()> {
    let restarts = if quick { restarts.min(3) } else { restarts };
    let mut table = Table::new(
        "Rolling restarts of 3 instances behind Envoy under load (ms, timed from when a request was due)",
        &["restarts", "requests", "failed", "p99, rest", "p99, restart", "added p99", "max"],
    );
    // The peer fails requests at every restart, so a few are enough.
    for (name, leaves, restarts) in
        [("drain", Leaves::Drained, restarts), ("axum's graceful shutdown", Leaves::Axum, restarts.min(10))]
    {
        let envoy = Envoy::start(vec![Cluster { name: CLUSTER.into(), endpoints: Vec::new() }]).await?;
        let mut running = Vec::new();
        for _ in 0..INSTANCES {
            running.push(instance(leaves).await.map_err(|error| anyhow!(error))?);
        }
        put_behind(&envoy, CLUSTER, &running).await?;
        let load = Load::start(envoy.url().trim_start_matches("http://").parse()?, "/", 200, rate, 32);
        let start = async |_| instance(leaves).await;
        let windows = rolling_restarts(&envoy, CLUSTER, running, restarts, REST, start)
            .await
            .map_err(|error| anyhow!(error))?;
        let shots = load.stop().await;
        table.row(name, numbers(restarts, &shots, &windows));
    }
    table.publish("restarts")
}

fn numbers(restarts: usize, shots: &[Shot], windows: &[(Instant, Instant)]) -> Vec<f64> {
    let millis = |shot: &Shot| shot.took.as_secs_f64() * 1e3;
    let during = |shot: &&Shot| {
        // A linear search is enough: there are few windows.
        windows.iter().any(|(began, ended)| (*began..*ended).contains(&shot.due))
    };
    let (mut restarting, mut resting): (Vec<_>, Vec<_>) = (Vec::new(), Vec::new());
    for shot in shots {
        if during(&shot) { restarting.push(millis(shot)) } else { resting.push(millis(shot)) }
    }
    let failed = shots.iter().filter(|shot| shot.failure.is_some()).count();
    let (rest, restart) = (quantile(&mut resting, 0.99), quantile(&mut restarting, 0.99));
    let max = quantile(&mut restarting, 1.0).max(quantile(&mut resting, 1.0));
    vec![restarts as f64, shots.len() as f64, failed as f64, rest, restart, restart - rest, max]
}
