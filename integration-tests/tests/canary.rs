//! `cutover canary` against a real Prometheus that scrapes what the library exports: verdicts and actions.
//! Outages, logins and unusual data are in `canary_data.rs`.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::net::SocketAddr;
use std::process::Output;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::{Router, extract::Path, routing::get};
use cutover::flags::{Flags, Switch, UnleashOptions};
use cutover::metrics::Metrics;
use cutover::release::Release;
use cutover_testkit::{
    Postgres, PostgresOptions, Prometheus, Unleash, free_port, if_installed, program, wait_until,
};
use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::net::TcpListener;
use tower::ServiceExt;

const LIMIT: Duration = Duration::from_secs(60);

struct Said {
    code: i32,
    out: String,
    err: String,
}

async fn canary(prometheus: &str, arguments: &[&str]) -> Said {
    let mut command = tokio::process::Command::new(program().unwrap());
    command.arg("canary").args(["--prometheus", prometheus]).args(arguments).kill_on_drop(true);
    command.env_remove("UNLEASH_URL").env_remove("UNLEASH_ADMIN_TOKEN");
    let Output { status, stdout, stderr } = command.output().await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let said = Said { code: status.code().unwrap_or(-1), out: text(stdout), err: text(stderr) };
    assert!(!said.err.contains("panicked"), "{}", said.err);
    said
}

/// A version of a service whose path selects the response, and its metrics page.
struct Version {
    name: String,
    life: Mutex<(Metrics, Router)>,
    page: SocketAddr,
}

impl Version {
    async fn start(name: &str) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let page = listener.local_addr().unwrap();
        let version = Arc::new(Self { name: name.to_owned(), life: Mutex::new(life(name)), page });
        let this = Arc::clone(&version);
        let pages = Router::new().route(
            "/metrics",
            get(move || {
                let page = this.life.lock().unwrap().0.router();
                async move { page.oneshot(Request::get("/metrics").body(Body::empty()).unwrap()).await }
            }),
        );
        tokio::spawn(async move { axum::serve(listener, pages).await });
        version.send("ok", 1).await;
        version
    }

    /// Resets its counters, as a new process does.
    async fn restart(&self) {
        *self.life.lock().unwrap() = life(&self.name);
        self.send("ok", 1).await;
    }

    async fn send(&self, how: &str, requests: usize) {
        let app = self.life.lock().unwrap().1.clone();
        stream::iter(0..requests)
            .map(|_| {
                let request = Request::get(format!("/{how}")).body(Body::empty()).unwrap();
                let answer = app.clone().oneshot(request);
                async move { drop(answer.await.unwrap().into_body().collect().await) }
            })
            .buffer_unordered(200)
            .collect::<()>()
            .await;
    }
}

fn life(name: &str) -> (Metrics, Router) {
    let metrics = Metrics::new(&Release::new("payments", name).unwrap()).unwrap();
    let answer = async |Path(how): Path<String>| match how.as_str() {
        "slow" => {
            tokio::time::sleep(Duration::from_millis(120)).await;
            StatusCode::OK
        }
        "error" => StatusCode::BAD_GATEWAY,
        _ => StatusCode::OK,
    };
    let app = Router::new().route("/{how}", get(answer)).layer(metrics.layer());
    (metrics, app)
}

/// Waits until Prometheus has scraped exactly this number of requests of the version. After a restart, Prometheus still
/// has the higher number from before.
async fn seen(prometheus: &Prometheus, version: &Version, requests: usize) {
    let query = format!("sum(http_requests_total{{version=\"{}\"}})", version.name);
    wait_until("the scrape of all requests", LIMIT, async || {
        let samples = prometheus.query(&query).await?;
        Ok::<_, cutover_testkit::KitError>(samples.first().is_some_and(|one| one.value == requests as f64))
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn each_kind_of_canary_gets_its_verdict_and_reason() {
    // On a fresh machine this builds the program for a minute, and the test answers no scrape meanwhile.
    program().unwrap();
    let Some(prometheus) =
        if_installed(Prometheus::start(Vec::new(), Duration::from_millis(200)).await).unwrap()
    else {
        return;
    };
    // Name, requests, exit status, part of the output. Prometheus extrapolates to the window's ends, so that no share is
    // exact.
    type Deeds = &'static [(&'static str, usize)];
    let cases: [(&str, Deeds, i32, &str); 5] = [
        ("fine", &[("ok", 4_000)], 0, "pass       samples"),
        ("few", &[("ok", 100)], 4, "undecided  samples: 1"),
        ("failing", &[("ok", 392), ("error", 8)], 1, "FAIL       errors against stable: "),
        ("slow", &[("slow", 400)], 1, "FAIL       mean duration against stable: "),
        ("restarted", &[("ok", 392), ("restart", 0), ("error", 8)], 1, "FAIL       errors against stable: "),
    ];
    let stable = Version::start("stable").await;
    let mut canaries = Vec::new();
    for (name, ..) in cases {
        canaries.push(Version::start(name).await);
    }
    let pages: Vec<SocketAddr> = canaries.iter().chain([&stable]).map(|version| version.page).collect();
    prometheus.set_targets(&pages).unwrap();
    for version in canaries.iter().chain([&stable]) {
        seen(&prometheus, version, 1).await;
    }
    stable.send("ok", 40_000).await;
    for (canary, (_, requests, ..)) in canaries.iter().zip(cases) {
        let mut sent = 1;
        for (how, count) in requests {
            if *how == "restart" {
                // Prometheus knows what it scraped before the restart.
                seen(&prometheus, canary, sent).await;
                canary.restart().await;
                sent = 1;
            } else {
                canary.send(how, *count).await;
                sent += count;
            }
        }
        seen(&prometheus, canary, sent).await;
    }
    seen(&prometheus, &stable, 40_001).await;
    for (name, _, code, part) in cases {
        let said = canary(&prometheus.url(), &["--canary", name, "--worse", "3", "--window", "2m"]).await;
        assert_eq!(said.code, code, "{name}: {}{}", said.out, said.err);
        assert!(said.out.contains(part), "{name}: {}", said.out);
        let arguments = ["--json", "--canary", name, "--worse", "3", "--window", "2m"];
        let verdict: Value = serde_json::from_str(&canary(&prometheus.url(), &arguments).await.out).unwrap();
        let outcome = ["pass", "fail", "", "", "undecided"][code as usize];
        assert_eq!(verdict["outcome"], outcome, "{name}");
    }
    // An unknown version is no evidence, so it neither passes nor fails.
    for (canary_name, stable_name) in [("ghost", "stable"), ("fine", "ghost")] {
        let arguments = ["--canary", canary_name, "--stable", stable_name, "--window", "2m"];
        let said = canary(&prometheus.url(), &arguments).await;
        assert_eq!(said.code, 3, "{}{}", said.out, said.err);
        assert!(said.err.contains("no http_requests_total for version=\"ghost\""), "{}", said.err);
    }
    // A canary that is no longer scraped does not pass because of older data.
    prometheus.set_targets(&[stable.page]).unwrap();
    wait_until("the end of the scrapes", LIMIT, async || {
        let said =
            canary(&prometheus.url(), &["--canary", "fine", "--worse", "3", "--stale-after", "1s"]).await;
        Ok::<_, cutover_testkit::KitError>(said.code == 3)
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn no_answer_and_wrong_usage_have_their_own_status() {
    let nobody = format!("http://127.0.0.1:{}", free_port().unwrap());
    let said = canary(&nobody, &[]).await;
    assert_eq!(said.code, 3, "{}", said.err);
    assert!(said.err.contains("cannot query Prometheus") && said.err.contains("refused"), "{}", said.err);
    let marker = std::env::temp_dir().join(format!("cutover-no-answer-{}", std::process::id()));
    let touch = format!("touch {}", marker.display());
    let impatient = ["--watch", "1m", "--every", "200ms", "--patience", "0s", "--error-limit", "2"];
    let said = canary(&nobody, &[&impatient[..], &["--on-fail", &touch]].concat()).await;
    assert_eq!(said.code, 3, "{}{}", said.out, said.err);
    assert_eq!(said.err.matches("measuring again").count(), 2, "{}", said.err);
    assert!(!marker.exists(), "--on-fail ran without evidence");

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let other = format!("http://{}", listener.local_addr().unwrap());
    let answer = async |request: axum::extract::RawQuery| {
        let shape = if request.0.is_some_and(|query| query.contains("nan")) {
            r#"{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[0,"NaN"]}]}}"#
        } else {
            "<html>hello</html>"
        };
        shape.to_owned()
    };
    let pages = Router::new().fallback(answer);
    tokio::spawn(async move { axum::serve(listener, pages).await });
    let said = canary(&other, &[]).await;
    assert_eq!(said.code, 3, "{}", said.err);
    assert!(said.err.contains("is not one of Prometheus"), "{}", said.err);
    let said = canary(&other, &["--canary", "nan", "--stable", "nan2"]).await;
    assert_eq!(said.code, 3, "{}{}", said.out, said.err);

    let usage: [(&[&str], &str); 9] = [
        (&["--window", "soon"], "write for example 90s"),
        (&["--canary", "stable"], "--canary: must differ from --stable"),
        (&["--max-errors", "0", "--label", "a-b"], "--label: must be letters"),
        (&["--prometheus-user", "me"], "--prometheus-user: needs"),
        (&["--prometheus-token", "t", "--prometheus-user", "me"], "set the token of Prometheus or a user"),
        (&["--prometheus-header", "X-Scope"], "has no colon"),
        (&["--on-fail-flag", "x"], "--unleash-url"),
        (&["--every", "5s"], "--watch"),
        (&["--worse", "1"], "--worse: must be"),
    ];
    for (arguments, part) in usage {
        let said = canary(&other, arguments).await;
        assert_eq!(said.code, 2, "{arguments:?}: {}", said.err);
        assert!(said.err.contains(part), "{arguments:?}: {}", said.err);
    }

    let Some(prometheus) = if_installed(Prometheus::start(Vec::new(), Duration::from_secs(1)).await).unwrap()
    else {
        return;
    };
    let said = canary(&prometheus.url(), &["--match", "service="]).await;
    assert_eq!(said.code, 3, "{}", said.err);
    assert!(said.err.contains("refused the query") && said.err.contains("parse error"), "{}", said.err);
}

#[tokio::test]
async fn a_watch_ends_at_a_failure_and_switches_the_flag_off() {
    // On a fresh machine this builds the program for a minute, and the test answers no scrape meanwhile.
    program().unwrap();
    let Some(prometheus) =
        if_installed(Prometheus::start(Vec::new(), Duration::from_millis(200)).await).unwrap()
    else {
        return;
    };
    let postgres = Postgres::start(PostgresOptions::default()).await.unwrap();
    let Some(unleash) = if_installed(Unleash::start(&postgres).await).unwrap() else { return };
    let admin = unleash.admin().unwrap();
    admin.ensure_flag("new-flow").await.unwrap();
    admin.enable("new-flow").await.unwrap();

    let (good, bad) = (Version::start("stable").await, Version::start("canary").await);
    prometheus.set_targets(&[good.page, bad.page]).unwrap();
    seen(&prometheus, &good, 1).await;
    seen(&prometheus, &bad, 1).await;
    let load = tokio::spawn(async move {
        for round in 0.. {
            good.send("ok", 95).await;
            bad.send(if round % 10 > 4 { "error" } else { "ok" }, 5).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let folder = std::env::temp_dir().join(format!("cutover-canary-{}", std::process::id()));
    let keep = format!("cat > {}", folder.display());
    let (url, token) = (unleash.url(), unleash.admin_token().to_owned());
    let arguments = [
        "--watch",
        "60s",
        "--every",
        "500ms",
        "--window",
        "5s",
        "--patience",
        "60s",
        "--on-fail",
        &keep,
        "--on-fail-flag",
        "new-flow",
        "--environment",
        "development",
        "--unleash-url",
        &url,
        "--unleash-admin-token",
        &token,
    ];
    let said = canary(&prometheus.url(), &arguments).await;
    load.abort();
    assert_eq!(said.code, 1, "{}{}", said.out, said.err);
    assert!(said.out.ends_with("FAIL\n"), "{}", said.out);
    assert!(!said.err.contains("new-flow"), "{}", said.err);
    let verdict: Value = serde_json::from_slice(&std::fs::read(&folder).unwrap()).unwrap();
    std::fs::remove_file(&folder).unwrap();
    assert_eq!(verdict["outcome"], "fail");
    let options = UnleashOptions {
        interval: Duration::from_millis(200),
        ..UnleashOptions::new(unleash.url(), unleash.backend_token(), "judge", "judge-1")
    };
    let flags = Flags::unleash(options).unwrap();
    wait_until("the flag to be off", LIMIT, async || {
        Ok::<_, cutover_testkit::KitError>(flags.switch("new-flow") == Switch::Off)
    })
    .await
    .unwrap();
    // A flag that does not exist is reported, and the command runs all the same.
    let actions = ["--window", "1m", "--on-fail", &keep, "--on-fail-flag", "old-flow"];
    let unleash = ["--unleash-url", &url, "--unleash-admin-token", &token];
    let said = canary(&prometheus.url(), &[&actions[..], &unleash, &["--dry-run"]].concat()).await;
    assert_eq!(said.code, 1, "{}{}", said.out, said.err);
    assert!(said.err.contains("would switch flag \"old-flow\" off"), "{}", said.err);
    assert!(said.err.contains("would run the command"), "{}", said.err);
    assert!(!folder.exists(), "--dry-run ran the command");
    let said = canary(&prometheus.url(), &[&actions[..], &unleash].concat()).await;
    assert!(said.err.contains("has no such flag"), "{}", said.err);
    assert!(folder.exists());
    std::fs::remove_file(&folder).unwrap();
}
