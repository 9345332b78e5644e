//! The recipes of `examples/deploy`, each checked with its real tool.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod migration;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use axum::{Router, body::Body, http::Request, http::StatusCode, routing::get};
use cutover::flags::{FixedFlag, Flag, Flags, Subject};
use cutover::metrics::Metrics;
use cutover::release::Release;
use cutover_testkit::{KitError, Prometheus, PrometheusOptions, if_installed, manifests, wait_until};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::net::TcpListener;
use tower::ServiceExt;

const LIMIT: Duration = Duration::from_secs(180);

fn recipes() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples/deploy").canonicalize().unwrap()
}

fn files(folder: &str) -> Vec<PathBuf> {
    let all = std::fs::read_dir(recipes().join(folder)).unwrap().map(|entry| entry.unwrap().path());
    let mut yaml: Vec<PathBuf> = all.filter(|path| path.extension().is_some_and(|e| e == "yaml")).collect();
    yaml.sort();
    assert!(!yaml.is_empty(), "{folder} has no recipe");
    yaml
}

/// Exit status and output of a tool.
fn run(command: &mut Command) -> (bool, String) {
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn validate(tools: &Path, files: &[PathBuf]) -> (bool, String) {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/deploy/validate.mjs");
    run(Command::new(tools.join("bin/node")).arg(script).arg(tools).args(files))
}

#[test]
fn istio_argo_and_workflows_match_their_schemas() {
    let Some(tools) = if_installed(manifests()).unwrap() else { return };
    for folder in ["istio", "argo-rollouts", "github"] {
        let (is_valid, said) = validate(&tools, &files(folder));
        assert!(is_valid, "{said}");
    }
    // The check fails for a wrong type, an unknown field, and a wrong expression.
    let spoilt = [
        ("istio/virtual-service.yaml", "weight: 95", "weight: \"95\"", "weight: type"),
        ("istio/destination-rule.yaml", "maxRetries", "maxRetrys", "maxRetrys is no field"),
        ("argo-rollouts/rollout.yaml", "maxSurge", "maxSurges", "maxSurges is no field"),
        ("github/deploy.yaml", "inputs.image }}", "inputs.picture }}", "picture"),
    ];
    let folder = std::env::temp_dir().join(format!("cutover-recipes-{}", std::process::id()));
    for (file, from, to, part) in spoilt {
        let text = std::fs::read_to_string(recipes().join(file)).unwrap();
        assert!(text.contains(from), "{file}");
        let copy = folder.join(file);
        std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
        std::fs::write(&copy, text.replace(from, to)).unwrap();
        let (is_valid, said) = validate(&tools, &[copy]);
        assert!(!is_valid && said.contains(part), "{file}: {said}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn kubernetes_manifests_match_the_schemas() {
    let Some(tools) = if_installed(manifests()).unwrap() else { return };
    let check = |file: &Path| {
        let mut command = Command::new("python3");
        command.env("PYTHONPATH", tools.join("python"));
        run(command.args(["-m", "kubernetes_validate", "--strict", "--no-warn"]).arg(file))
    };
    for file in files("kubernetes") {
        let (is_valid, said) = check(&file);
        assert!(is_valid, "{said}");
    }
}

#[test]
fn rules_pass_their_own_tests() {
    let promtool = |arguments: &[&str]| {
        run(Command::new("promtool").args(arguments).current_dir(recipes().join("prometheus")))
    };
    if Command::new("promtool").arg("--version").output().is_err() {
        return;
    }
    let (is_valid, said) = promtool(&["check", "rules", "rules.yaml"]);
    assert!(is_valid, "{said}");
    let (is_valid, said) = promtool(&["test", "rules", "rules-test.yaml"]);
    assert!(is_valid, "{said}");
}

/// A canary that fails half of its requests, and a stable version that fails none.
async fn versions() -> Vec<std::net::SocketAddr> {
    let mut pages = Vec::new();
    for (version, status) in [("stable", StatusCode::OK), ("canary", StatusCode::INTERNAL_SERVER_ERROR)] {
        let metrics = Metrics::new(&Release::new("payments", version).unwrap()).unwrap();
        let flags = Flags::fixed([("new-flow", FixedFlag::ON)]);
        flags.register(metrics.registry(), metrics.release()).unwrap();
        let fetched =
            prometheus::Gauge::new("cutover_flags_last_success_timestamp_seconds", "as Unleash's").unwrap();
        fetched.set(1.0);
        metrics.registry().register(Box::new(fetched)).unwrap();
        let app = Router::new()
            .route("/fine", get(|| async {}))
            .route("/", get(move || async move { status }))
            .layer(metrics.layer());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        pages.push(listener.local_addr().unwrap());
        let page = metrics.router();
        tokio::spawn(async move { axum::serve(listener, page).await });
        tokio::spawn(async move {
            let flag = Flag::new("new-flow", false);
            loop {
                for path in ["/", "/fine"] {
                    let request = Request::get(path).body(Body::empty()).unwrap();
                    let answer = app.clone().oneshot(request).await.unwrap();
                    let _ = answer.into_body().collect().await;
                    flags.decide(&flag, &Subject::new());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    }
    pages
}

#[tokio::test]
async fn prometheus_loads_the_rules_and_dashboard_queries() {
    let rules = std::fs::read_to_string(recipes().join("prometheus/rules.yaml")).unwrap();
    // Seconds instead of minutes.
    let rules =
        rules.replace("interval: 15s", "interval: 1s").replace("[1m]", "[5s]").replace("for: 30s", "for: 1s");
    let options =
        PrometheusOptions { rules: Some(rules), job: "payments".to_owned(), ..PrometheusOptions::default() };
    let pages = versions().await;
    let started = Prometheus::start_with(pages, Duration::from_millis(500), options).await;
    let Some(prometheus) = if_installed(started).unwrap() else { return };
    let has = async |query: String| {
        let what = format!("series of {query}");
        wait_until(&what, LIMIT, async || Ok::<_, KitError>(!prometheus.query(&query).await?.is_empty()))
            .await
    };
    has("ALERTS{alertname=\"CanaryFails\",alertstate=\"firing\",version=\"canary\"}".to_owned())
        .await
        .unwrap();
    // A busy machine misses scrapes, and then the canary is unseen for a moment.
    wait_until("no alert that the canary is unseen", LIMIT, async || {
        Ok::<_, KitError>(prometheus.query("ALERTS{alertname=\"CanaryUnseen\"}").await?.is_empty())
    })
    .await
    .unwrap();

    for query in queries("deploy").iter().filter(|query| !is_of_an_instance(query)) {
        has(query.clone()).await.unwrap();
    }
}

/// Metrics that a whole instance has, rather than its layers alone.
fn is_of_an_instance(query: &str) -> bool {
    ["cutover_ready", "cutover_drain", "cutover_check", "cutover_pool", "cutover_http"]
        .iter()
        .any(|family| query.contains(family))
}

/// The queries of a dashboard's panels, for service `payments` and migration `status`.
fn queries(dashboard: &str) -> Vec<String> {
    let file = recipes().join("grafana").join(dashboard).with_extension("json");
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().unwrap());
    let filled = targets.map(|target| {
        let query = target["expr"].as_str().unwrap();
        query.replace("$job", "payments").replace("$migration", "status").replace("$__rate_interval", "5s")
    });
    let filled: Vec<String> = filled.collect();
    assert!(filled.len() > 10);
    filled
}
