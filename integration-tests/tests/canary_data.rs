//! `cutover canary` against a real Prometheus with outages, logins and unusual data.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::RawQuery;
use axum::http::{HeaderMap, StatusCode};
use axum::{Router, routing::get};
use cutover_testkit::{Folder, Prometheus, PrometheusOptions, Signal, if_installed, program, wait_until};
use tokio::net::TcpListener;

const LIMIT: Duration = Duration::from_secs(60);
const SCRAPE: Duration = Duration::from_millis(200);

/// Exit status, standard output, standard error.
async fn canary(prometheus: &str, arguments: &[&str]) -> (i32, String, String) {
    let mut command = tokio::process::Command::new(program().unwrap());
    command.arg("canary").args(["--prometheus", prometheus]).args(arguments).kill_on_drop(true);
    let output = command.output().await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// A metrics page of a version. Each scrape shows 500 more requests.
struct Page {
    address: SocketAddr,
    requests: Arc<AtomicU64>,
    /// Spellings of the bound of 1 s.
    bounds: Arc<Mutex<Vec<&'static str>>>,
    /// Failures, as a counter that does not grow.
    failed: Arc<AtomicU64>,
}

impl Page {
    /// `slow` requests of 100 take longer than 1 s.
    async fn start(version: &'static str, bounds: &[&'static str], slow: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let page = Self {
            address: listener.local_addr().unwrap(),
            requests: Arc::new(AtomicU64::new(0)),
            bounds: Arc::new(Mutex::new(bounds.to_vec())),
            failed: Arc::new(AtomicU64::new(0)),
        };
        let (requests, bounds, failed) =
            (Arc::clone(&page.requests), Arc::clone(&page.bounds), Arc::clone(&page.failed));
        let text = move || {
            let all = requests.fetch_add(500, Ordering::SeqCst) + 500;
            let fast = all / 100 * (100 - slow);
            let labels = format!("method=\"GET\",route=\"/\",version=\"{version}\"");
            let mut text = format!("http_requests_total{{{labels},status=\"200\"}} {all}\n");
            let failed = failed.load(Ordering::SeqCst);
            if failed > 0 {
                text += &format!("http_requests_total{{{labels},status=\"500\"}} {failed}\n");
            }
            let bucket = |bound: &str, count: u64| {
                format!("http_request_duration_seconds_bucket{{{labels},le=\"{bound}\"}} {count}\n")
            };
            text += &bucket("0.25", fast);
            for bound in &*bounds.lock().unwrap() {
                text += &bucket(bound, fast);
            }
            text += &bucket("+Inf", all);
            text += &format!("http_request_duration_seconds_sum{{{labels}}} {}\n", all / 10);
            text + &format!("http_request_duration_seconds_count{{{labels}}} {all}\n")
        };
        let pages = Router::new().route("/metrics", get(async move || text()));
        tokio::spawn(async move { axum::serve(listener, pages).await });
        page
    }
}

async fn start(pages: &[&Page], options: PrometheusOptions) -> Option<Prometheus> {
    // On a fresh machine this builds the program for a minute, and the test answers no scrape meanwhile.
    program().unwrap();
    let pages = pages.iter().map(|page| page.address).collect();
    if_installed(Prometheus::start_with(pages, SCRAPE, options).await).unwrap()
}

/// Measures until the exit status is `code`, and returns the output then.
async fn until_status(prometheus: &str, arguments: &[&str], code: i32) -> String {
    until_said(prometheus, arguments, code, &[]).await
}

/// Measures until the exit status is `code` and the output has these parts, and returns it then.
async fn until_said(prometheus: &str, arguments: &[&str], code: i32, parts: &[&str]) -> String {
    let last = Mutex::new(String::new());
    wait_until(&format!("exit status {code}"), LIMIT, async || {
        let (status, out, err) = canary(prometheus, arguments).await;
        let said = format!("{status} {out}{err}");
        last.lock().unwrap().clone_from(&said);
        if status == code && parts.iter().all(|part| said.contains(part)) { Ok(true) } else { Err(said) }
    })
    .await
    .unwrap();
    last.into_inner().unwrap()
}

#[tokio::test]
async fn an_outage_of_prometheus_does_not_fail_a_canary() {
    let (fine, stable) = (Page::start("canary", &["1"], 0).await, Page::start("stable", &["1"], 0).await);
    let Some(prometheus) = start(&[&fine, &stable], PrometheusOptions::default()).await else { return };
    let (url, marker) = (prometheus.url(), Folder::new("canary").unwrap());
    let touch = format!("touch {}/failed", marker.path().display());
    let watching = tokio::spawn(async move {
        let arguments = ["--watch", "34s", "--every", "1s", "--window", "10s", "--patience", "5s"];
        let limits = ["--error-limit", "200", "--worse", "3", "--on-fail", &touch];
        canary(&url, &[&arguments[..], &limits].concat()).await
    });
    tokio::time::sleep(Duration::from_secs(6)).await;
    prometheus.process().signal(Signal::STOP).unwrap();
    tokio::time::sleep(Duration::from_secs(16)).await;
    prometheus.process().signal(Signal::CONT).unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    prometheus.restart().await.unwrap();
    let (code, out, err) = watching.await.unwrap();
    assert_eq!(code, 0, "{out}{err}");
    assert!(err.contains("measuring again"), "the outage was not noticed: {err}");
    assert!(!marker.path().join("failed").exists(), "--on-fail ran without evidence: {out}{err}");
}

/// Its counters begin with all failures that the canary ever had.
#[tokio::test]
async fn a_prometheus_without_its_data_does_not_fail_a_canary() {
    let (fine, stable) = (Page::start("canary", &["1"], 0).await, Page::start("stable", &["1"], 0).await);
    fine.failed.store(5_000, Ordering::SeqCst);
    let Some(prometheus) = start(&[&fine, &stable], PrometheusOptions::default()).await else { return };
    let url = prometheus.url();
    until_status(&url, &["--worse", "3"], 0).await;
    let watching = tokio::spawn(async move {
        let arguments = ["--watch", "25s", "--every", "500ms", "--window", "10s", "--patience", "5s"];
        canary(&url, &[&arguments[..], &["--error-limit", "500", "--worse", "3"]].concat()).await
    });
    tokio::time::sleep(Duration::from_secs(4)).await;
    prometheus.restart_empty().await.unwrap();
    let (code, out, err) = watching.await.unwrap();
    // If a busy machine starts it slowly, the new data may be too few to decide.
    assert!(matches!(code, 0 | 4), "{code} {out}{err}");
    assert!(!out.contains("FAIL"), "{out}{err}");
}

#[tokio::test]
async fn failures_and_undecided_measurements_have_limits() {
    let (slow, stable) = (Page::start("canary", &["1"], 5).await, Page::start("stable", &["1"], 0).await);
    let Some(prometheus) = start(&[&slow, &stable], PrometheusOptions::default()).await else { return };
    let measure = ["--window", "10s", "--worse", "3", "--max-p99", "1s"];
    until_status(&prometheus.url(), &measure, 1).await;
    let watch = ["--watch", "1m", "--every", "300ms", "--patience", "0s", "--error-limit", "200"];
    let limited = [&measure[..], &watch, &["--failure-limit", "2"]].concat();
    let (code, out, err) = canary(&prometheus.url(), &limited).await;
    // In a row: a measurement without enough scrapes is undecided, and they are counted again.
    let outcomes: Vec<&str> =
        out.lines().filter(|line| ["pass", "undecided", "FAIL"].contains(line)).collect();
    let failures = outcomes.iter().rev().take_while(|outcome| **outcome == "FAIL").count();
    assert_eq!((code, failures), (1, 3), "{out}{err}");
    // An equal version, so few requests that nothing can be said.
    let equal = ["--canary", "stable", "--stable", "canary", "--window", "1s", "--worse", "1.25"];
    let limited = [&equal[..], &watch, &["--inconclusive-limit", "1", "--max-p99", "10s"]].concat();
    let (code, out, err) = canary(&prometheus.url(), &limited).await;
    assert_eq!((code, out.lines().filter(|line| *line == "undecided").count()), (4, 2), "{out}{err}");
}

#[tokio::test]
async fn a_bound_with_two_spellings_counts_once() {
    let slow = Page::start("canary", &["1", "1.0"], 5).await;
    let stable = [Page::start("stable", &["1"], 0).await, Page::start("stable", &["1.0"], 0).await];
    let fine = Page::start("fine", &["1.0"], 0).await;
    let pages = [&slow, &stable[0], &stable[1], &fine];
    let Some(prometheus) = start(&pages, PrometheusOptions::default()).await else { return };
    let arguments = ["--window", "10s", "--worse", "3", "--max-p99", "1s"];
    let said = until_status(&prometheus.url(), &arguments, 1).await;
    // Counted twice, the requests up to 1 s would be more than all requests.
    let share = said.split("FAIL       slow requests against the limit: ").nth(1).unwrap_or_default();
    let share: f64 = share.split(' ').next().unwrap_or_default().parse().unwrap_or_default();
    assert!((4.0..6.0).contains(&share), "{said}");
    until_status(&prometheus.url(), &[&arguments[..], &["--canary", "fine"]].concat(), 0).await;
    // A spelling that changes splits a counter in two, and no sum of both is right.
    *fine.bounds.lock().unwrap() = vec!["1"];
    let fine = [&arguments[..], &["--canary", "fine"]].concat();
    until_said(&prometheus.url(), &fine, 3, &["bounds of the histogram", "changed"]).await;
}

/// The metrics of an instance as OpenMetrics: a sample every 15 s for these ages in seconds, oldest first. A sample has
/// the number of requests and of failed requests.
fn history(version: &str, samples: &[(u64, u64, u64)]) -> [String; 2] {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let (mut requests, mut durations) = (String::new(), String::new());
    let labels =
        format!("instance=\"{version}\",job=\"kit\",method=\"GET\",route=\"/\",version=\"{version}\"");
    let lines = |family: &str, more: &str, value: &dyn Fn(u64, u64) -> u64, to: &mut String| {
        for (age, all, failed) in samples {
            *to += &format!("{family}{{{labels}{more}}} {} {}\n", value(*all, *failed), now - age);
        }
    };
    lines("http_requests_total", ",status=\"200\"", &|all, failed| all - failed, &mut requests);
    if samples.iter().any(|sample| sample.2 > 0) {
        lines("http_requests_total", ",status=\"500\"", &|_, failed| failed, &mut requests);
    }
    for bound in ["0.25", "1.0", "+Inf"] {
        let label = format!(",le=\"{bound}\"");
        lines("http_request_duration_seconds_bucket", &label, &|all, _| all, &mut durations);
    }
    lines("http_request_duration_seconds_count", "", &|all, _| all, &mut durations);
    lines("http_request_duration_seconds_sum", "", &|all, _| all / 10, &mut durations);
    [requests, durations]
}

/// Samples from `from` to `to` seconds ago: 3,000 more requests each, from `start` on, and a constant number of failures.
fn samples(from: u64, to: u64, start: u64, failed: u64) -> Vec<(u64, u64, u64)> {
    (0..=(from - to) / 15).map(|n| (from - 15 * n, start + 3_000 * n, failed)).collect()
}

#[tokio::test]
async fn gaps_resets_and_new_counters_are_summed_correctly() {
    // The samples must not grow old while it is built.
    program().unwrap();
    // It failed 5,000 requests long ago, and was not scraped for eight minutes.
    let gap = [samples(1_190, 605, 10_000, 5_000), samples(110, 5, 300_000, 5_000)].concat();
    // It restarted and has failed nothing since.
    let reset = [samples(1_190, 65, 10_000, 5_000), samples(50, 5, 3_000, 0)].concat();
    // It started a minute ago, and failed 2,000 requests before the first scrape.
    let new = samples(65, 5, 3_000, 2_000);
    let stable = samples(1_190, 5, 10_000, 0);
    let all: Vec<_> = [("gap", gap), ("reset", reset), ("new", new), ("stable", stable)]
        .iter()
        .map(|(version, samples)| history(version, samples))
        .collect();
    let part = |index: usize| all.iter().map(|families| families[index].as_str()).collect::<String>();
    // The type would require the samples of a histogram in another order.
    let history = format!("# TYPE http_requests counter\n{}{}# EOF\n", part(0), part(1));
    let options = PrometheusOptions { history: Some(history), ..PrometheusOptions::default() };
    let Some(prometheus) = start(&[], options).await else { return };
    for (version, code, part) in [
        ("gap", 0, " 0.00 % failed,"),
        ("reset", 0, " 0.00 % failed,"),
        ("new", 1, "FAIL       errors against"),
    ] {
        let (status, out, err) =
            canary(&prometheus.url(), &["--canary", version, "--worse", "3", "--window", "2m"]).await;
        assert_eq!(status, code, "{version}: {out}{err}");
        assert!(out.contains(part), "{version}: {out}");
    }
}

#[tokio::test]
async fn failures_from_before_the_first_scrape_do_not_count() {
    let (fine, stable) = (Page::start("canary", &["1"], 0).await, Page::start("stable", &["1"], 0).await);
    fine.failed.store(5_000, Ordering::SeqCst);
    let Some(prometheus) = start(&[&fine, &stable], PrometheusOptions::default()).await else { return };
    let said = until_status(&prometheus.url(), &["--worse", "3"], 0).await;
    assert!(said.contains(" 0.00 % failed,"), "{said}");
}

#[tokio::test]
async fn a_partial_result_is_refused() {
    let (fine, stable) = (Page::start("canary", &["1"], 0).await, Page::start("stable", &["1"], 0).await);
    let away = format!("http://127.0.0.1:{}/read", cutover_testkit::free_port().unwrap());
    let options = PrometheusOptions { remote_read: Some(away), ..PrometheusOptions::default() };
    let Some(prometheus) = start(&[&fine, &stable], options).await else { return };
    let (code, out, err) = canary(&prometheus.url(), &[]).await;
    assert_eq!(code, 3, "{out}{err}");
    assert!(err.contains("partial result") && err.contains("remote_read"), "{err}");
}

/// A gateway in front of Prometheus, as a hosted one has. It requires an `Authorization` and a tenant.
async fn gateway(prometheus: String, authorization: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("{}/tenant", listener.local_addr().unwrap());
    let forward = async move |headers: HeaderMap, RawQuery(query): RawQuery| {
        let has = |name: &str, value: &str| headers.get(name).is_some_and(|header| header == value);
        if !has("authorization", authorization) || !has("x-scope-orgid", "payments") {
            return (StatusCode::UNAUTHORIZED, String::new());
        }
        let url = format!("{prometheus}/api/v1/query?{}", query.unwrap_or_default());
        match reqwest::get(url).await.and_then(reqwest::Response::error_for_status) {
            Ok(answer) => (StatusCode::OK, answer.text().await.unwrap_or_default()),
            Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()),
        }
    };
    let app = Router::new().route("/tenant/api/v1/query", get(forward));
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

#[tokio::test]
async fn logins_work_and_secrets_are_never_printed() {
    let (fine, stable) = (Page::start("canary", &["1"], 0).await, Page::start("stable", &["1"], 0).await);
    let Some(prometheus) = start(&[&fine, &stable], PrometheusOptions::default()).await else { return };
    until_status(&prometheus.url(), &["--worse", "3"], 0).await;
    let folder = Folder::new("login").unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (password, token) = (file("password", "s@cret\n"), file("token", "s@cret\n"));
    let header = format!("@{}", file("headers", "X-Scope-OrgID: payments\n"));
    let basic = gateway(prometheus.url(), "Basic dXNlcjpzQGNyZXQ=").await;
    let bearer = gateway(prometheus.url(), "Bearer s@cret").await;
    let seen = folder.path().join("verdict");
    let keep = format!("cat > {}", seen.display());
    let cases: [(String, &[&str], i32); 7] = [
        (format!("http://user:s%40cret@{basic}"), &[], 0),
        (
            format!("http://{basic}"),
            &["--prometheus-user", "user", "--prometheus-password-file", &password],
            0,
        ),
        (format!("http://{bearer}"), &["--prometheus-token-file", &token], 0),
        (format!("http://{bearer}"), &["--prometheus-token", "s@cret"], 0),
        // Wrong logins, a wrong URL and a verdict with an action: none of them prints the secret.
        (format!("http://user:wrong-s%40cret@{basic}"), &[], 3),
        ("http://user:s%40cret@:port".to_owned(), &[], 2),
        (format!("http://user:s%40cret@{basic}"), &["--on-fail", &keep], 1),
    ];
    for (url, login, code) in &cases {
        for json in [&[][..], &["--json"]] {
            let arguments = [&["--worse", "3", "--prometheus-header", &header], *login, json].concat();
            if *code == 1 {
                fine.failed.fetch_add(100_000, Ordering::SeqCst);
                // Until it is scraped, the canary passes.
                until_status(url, &arguments, 1).await;
            }
            let (status, out, err) = canary(url, &arguments).await;
            // On a slow machine the verdict may be that more requests are needed. The login worked then, too.
            let status = if status == 4 { 0 } else { status };
            assert_eq!(status, *code, "{url} {out}{err}");
            let input = std::fs::read_to_string(&seen).unwrap_or_default();
            for text in [out, err, input] {
                assert!(!text.contains("s@cret") && !text.contains("s%40cret"), "{text}");
            }
        }
    }
    assert!(seen.exists());
    let (status, _, err) = canary(&format!("http://{bearer}"), &["--prometheus-token", "s@cret"]).await;
    assert_eq!(status, 3, "without the tenant: {err}");
    assert!(err.contains("401") && err.contains("--prometheus-token-file"), "{err}");
}

/// A certificate authority and a certificate for 127.0.0.1, made by `openssl`.
const CERTIFICATES: &str = "
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=prometheus -keyout server.key -out server.csr
printf 'subjectAltName=IP:127.0.0.1\\nbasicConstraints=CA:FALSE\\n' > extensions
openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out server.pem
";

#[tokio::test]
async fn prometheus_is_queried_over_tls_with_a_login() {
    let folder = Folder::new("certificates").unwrap();
    let made = Command::new("sh").args(["-ec", CERTIFICATES]).current_dir(folder.path()).output().unwrap();
    if !folder.path().join("server.pem").exists() {
        println!("skipped, no certificates: {}", String::from_utf8_lossy(&made.stderr));
        return;
    }
    let path = |name: &str| folder.path().join(name).display().to_string();
    // The bcrypt hash of `s@cret`.
    let web = format!(
        "tls_server_config: {{ cert_file: {}, key_file: {} }}\n\
         basic_auth_users: {{ user: $2b$04$abcdefghijklmnopqrstuuB7YUM6kCJ8MDyjZ.vGgDxni0wqoKf1W }}\n",
        path("server.pem"),
        path("server.key")
    );
    let (fine, stable) = (Page::start("canary", &["1"], 0).await, Page::start("stable", &["1"], 0).await);
    let options = PrometheusOptions { web: Some(web), ..PrometheusOptions::default() };
    let Some(prometheus) = start(&[&fine, &stable], options).await else { return };
    let url = prometheus.url().replace("http://", "https://user:s%40cret@");
    let ca = path("ca.pem");
    until_status(&url, &["--worse", "3", "--prometheus-ca-file", &ca], 0).await;
    // Without the file the certificate is not trusted.
    let (code, _, err) = canary(&url, &["--worse", "3"]).await;
    assert!(matches!(code, 2 | 3) && err.contains("certificate"), "{code} {err}");
    let (code, _, err) = canary(&url, &["--prometheus-ca-file", &path("server.key")]).await;
    assert_eq!(code, 2, "{err}");
}
