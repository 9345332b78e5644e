//! The queries of a canary judge on a real Prometheus.

use std::{net::SocketAddr, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{Method, Request},
    routing::get,
};
use cutover::{metrics::Metrics, release::Release};
use cutover_testkit::{KitError, Prometheus, if_installed, wait_until};
use http_body_util::BodyExt;
use tokio::net::TcpListener;
use tower::ServiceExt;

const LIMIT: Duration = Duration::from_secs(90);

/// A service of this version, and the address of its metrics.
struct Scraped {
    app: Router,
    address: SocketAddr,
}

impl Scraped {
    async fn start(version: &str) -> Self {
        let metrics = Metrics::new(&Release::new("kit", version).unwrap()).unwrap();
        for route in ["/orders/{id}", "/panics"] {
            metrics.declare(&Method::GET, route);
        }
        let panics = async || -> &'static str { std::panic::resume_unwind(Box::new("on purpose")) };
        let app = Router::new()
            .route("/orders/{id}", get(async || "an order"))
            .route("/panics", get(panics))
            .layer(metrics.layer());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, metrics.router()).await });
        Self { app, address }
    }

    async fn requests(&self, path: &str, times: usize) {
        for _ in 0..times {
            let request = Request::get(path)
                .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
            let app = self.app.clone();
            // The server catches panics.
            let response = tokio::spawn(app.oneshot(request.body(Body::empty()).unwrap())).await;
            if let Ok(Ok(response)) = response {
                response.into_body().collect().await.unwrap();
            }
        }
    }
}

/// The value of a query, if its result is not empty.
async fn value(prometheus: &Prometheus, query: &str) -> Result<Option<f64>, KitError> {
    let samples = prometheus.query(query).await?;
    assert!(samples.len() <= 1, "{query}: {samples:?}");
    Ok(samples.first().map(|sample| sample.value))
}

/// The queries of a template, with their arguments.
fn queries(template: &str, version: &str) -> Vec<String> {
    let arguments = [
        ("{{args.job}}", "kit"),
        ("{{args.version}}", version),
        ("{{args.window}}", "2m"),
        ("{{ namespace }}", "kit"),
        ("{{ target }}", version),
        ("{{ interval }}", "2m"),
    ];
    let mut queries = Vec::new();
    let mut lines = template.lines().peekable();
    while let Some(line) = lines.next() {
        if line.trim() != "query: |" {
            continue;
        }
        let indent = |line: &str| line.len() - line.trim_start().len();
        let mut query = String::new();
        while let Some(next) = lines.next_if(|next| indent(next) > indent(line)) {
            query.push_str(next.trim());
            query.push('\n');
        }
        queries.push(arguments.iter().fold(query, |query, (name, value)| query.replace(name, value)));
    }
    assert!(queries.iter().all(|query| !query.contains("{{")), "{queries:#?}");
    queries
}

/// Requests, errors and latency, in this order.
const TEMPLATES: [&str; 2] = [
    include_str!("../../../examples/deploy/argo-rollouts/analysis-template.yaml"),
    include_str!("../../../examples/deploy/flagger/metric-templates.yaml"),
];

/// The queries of the case study, with a shorter window.
const SHARE: &str = r#"sum(rate(http_requests_total{status=~"5..",version="canary"}[5m])) / sum(rate(http_requests_total{version="canary"}[5m]))"#;
const P99: &str = r#"histogram_quantile(0.99, sum(rate(http_request_duration_seconds_bucket{version="canary"}[5m])) by (le))"#;

#[tokio::test]
async fn the_queries_of_a_judge_work_unchanged() {
    let canary = Scraped::start("canary").await;
    let stable = Scraped::start("stable").await;
    let idle = Scraped::start("idle").await;
    let targets = vec![canary.address, stable.address, idle.address];
    let Some(prometheus) =
        if_installed(Prometheus::start(targets, Duration::from_millis(500)).await).unwrap()
    else {
        return;
    };

    // The series exist before the first request, so the result is 0/0 and not empty.
    let (idle_share, stable_share) = (SHARE.replace("canary", "idle"), SHARE.replace("canary", "stable"));
    for query in [SHARE, P99, &idle_share, &stable_share] {
        wait_until(query, LIMIT, async || {
            Ok::<_, KitError>(value(&prometheus, query).await?.is_some_and(f64::is_nan))
        })
        .await
        .unwrap();
    }
    assert_eq!(value(&prometheus, &SHARE.replace("canary", "never-deployed")).await.unwrap(), None);

    // The share of failures is exactly 0 before the first failure.
    stable.requests("/orders/1", 200).await;
    canary.requests("/orders/1", 150).await;
    canary.requests("/panics", 50).await;
    let counted = |version: &str, count: f64| {
        let query = format!(r#"sum(http_requests_total{{version="{version}"}})"#);
        let prometheus = &prometheus;
        async move {
            wait_until(&query, LIMIT, async || {
                Ok::<_, KitError>(value(prometheus, &query).await? == Some(count))
            })
            .await
        }
    };
    counted("canary", 200.0).await.unwrap();
    counted("stable", 200.0).await.unwrap();
    assert_eq!(value(&prometheus, &stable_share).await.unwrap(), Some(0.0));
    // Every fourth request of the canary panicked. All steps came at once, after zeros of equal age.
    let share = value(&prometheus, SHARE).await.unwrap().unwrap();
    assert!((share - 0.25).abs() < 0.01, "{share}");
    let p99 = value(&prometheus, P99).await.unwrap().unwrap();
    assert!(p99 > 0.0 && p99 < 10.0, "{p99}");

    for template in TEMPLATES {
        let ask = async |version: &str| {
            let mut values = Vec::new();
            for query in queries(template, version) {
                values.push(value(&prometheus, &query).await.unwrap().unwrap());
            }
            <[f64; 3]>::try_from(values).unwrap()
        };
        let [requests, errors, latency] = ask("stable").await;
        assert!(requests >= 100.0 && errors == 0.0 && latency < 10.0, "{requests} {errors} {latency}");
        let [requests, errors, latency] = ask("canary").await;
        assert!(requests >= 100.0 && (errors - 0.25).abs() < 0.01 && latency < 10.0);
        // NaN and an empty result both count as the worst value.
        assert_eq!(ask("idle").await, [0.0, 1.0, f64::INFINITY]);
        assert_eq!(ask("never-deployed").await, [0.0, 1.0, f64::INFINITY]);
    }

    // Prometheus asked for OpenMetrics and accepted the response.
    let scraped = r#"min(up{job="kit"})"#;
    wait_until(scraped, LIMIT, async || Ok::<_, KitError>(value(&prometheus, scraped).await? == Some(1.0)))
        .await
        .unwrap();
}
