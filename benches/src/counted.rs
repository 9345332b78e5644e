//! What metrics layers report about requests that failed.

use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Body;
use axum_prometheus::metrics_exporter_prometheus::PrometheusHandle;
use axum_prometheus::{PrometheusMetricLayer, PrometheusMetricLayerBuilder};
use cutover::metrics::Metrics;
use cutover::release::Release;
use http::Request;
use http_body_util::BodyExt;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};
use tower::ServiceExt;

use super::abuse::{app, request};
use super::table::Table;

/// Requests of each kind.
const TIMES: usize = 10;
const SETTLED: Duration = Duration::from_secs(3);

/// The peer's recorder is global, so all measurements share one.
pub(crate) static PEER: LazyLock<(PrometheusMetricLayer<'static>, PrometheusHandle)> =
    LazyLock::new(|| PrometheusMetricLayerBuilder::new().with_default_metrics().build_pair());

/// The names of one library's metrics.
struct Names {
    total: &'static str,
    in_flight: &'static str,
    route: &'static str,
}

const OURS: Names =
    Names { total: "http_requests_total", in_flight: "http_requests_in_flight", route: "route" };
const PEERS: Names =
    Names { total: "axum_http_requests_total", in_flight: "axum_http_requests_pending", route: "endpoint" };

impl Names {
    /// The sum of a metric's series whose labels contain all of these.
    fn sum(page: &str, metric: &str, labels: &[String]) -> f64 {
        page.lines()
            .filter(|line| line.starts_with(metric) && labels.iter().all(|label| line.contains(label)))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            // Not `sum`: the sum of nothing is -0.
            .fold(0.0, |sum, value| sum + value)
    }

    fn requests(&self, page: &str, path: &str, status: &str) -> f64 {
        Self::sum(page, self.total, &[format!("{}=\"{path}\"", self.route), format!("status=\"{status}")])
    }

    fn in_flight(&self, page: &str) -> f64 {
        ["/panic", "/slow", "/torn", "/events"]
            .iter()
            .map(|path| Self::sum(page, self.in_flight, &[format!("{}=\"{path}\"", self.route)]))
            .sum()
    }
}

async fn mistreat(address: SocketAddr) -> Result<()> {
    for _ in 0..TIMES {
        // None of them gets a complete response.
        let _ = request(address, "/panic").await?.read(&mut [0; 64]).await;
        let _ = request(address, "/torn").await?.read_to_end(&mut Vec::new()).await;
        request(address, "/events").await?.read_exact(&mut [0; 64]).await?;
        drop(request(address, "/slow").await?);
    }
    Ok(())
}

async fn count(app: Router, names: &Names, page: impl AsyncFn() -> Result<String>) -> Result<Vec<f64>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let server = tokio::spawn(async move { axum::serve(listener, app).await });
    mistreat(address).await?;
    let settled = async {
        while names.in_flight(&page().await?) > 0.0 {
            sleep(Duration::from_millis(50)).await;
        }
        anyhow::Ok(())
    };
    // What is in flight after this pause stays so for ever.
    let _ = timeout(SETTLED, settled).await;
    let page = page().await?;
    server.abort();
    let failed = |path| names.requests(&page, path, "5");
    let gone = |path| names.requests(&page, path, "4");
    let well = |path| names.requests(&page, path, "2");
    Ok(vec![
        failed("/panic"),
        gone("/slow"),
        failed("/torn"),
        gone("/events"),
        well("/torn") + well("/events"),
        names.in_flight(&page),
    ])
}

pub(crate) async fn run() -> Result<()> {
    let mut table = Table::new(
        "What metrics report about 10 panics, 10 clients that leave before the response, 10 bodies that break off, and \
         10 clients that leave in mid-body: counted as such (5xx, 499), counted as a success, in flight for ever",
        &["panics", "gone", "torn", "gone in body", "as a success", "in flight"],
    );
    let (peer, handle) = &*PEER;
    let page = async || Ok(handle.render());
    table.row("axum-prometheus", count(app().layer(peer.clone()), &PEERS, page).await?);

    let metrics = Metrics::new(&Release::new("bench", "canary")?)?;
    let page = async || {
        let request = Request::get("/metrics").body(Body::empty())?;
        let response = metrics.router().oneshot(request).await.context("metrics")?;
        Ok(String::from_utf8(response.into_body().collect().await?.to_bytes().to_vec())?)
    };
    table.row("metrics", count(app().layer(metrics.layer()), &OURS, page).await?);
    table.publish("abuse-counted")
}
