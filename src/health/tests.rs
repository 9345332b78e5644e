use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::body::Body;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::time::{advance, sleep};
use tower::ServiceExt;

use super::{Check, CheckError, Criticality, Health, ProbeOutcome, Status};

const SECOND: Duration = Duration::from_secs(1);

async fn page(health: &Health, path: &str) -> (StatusCode, String) {
    let request = Request::get(path).body(Body::empty()).unwrap();
    let response = health.router().oneshot(request).await.unwrap();
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}

/// A probe whose outcome the test sets: 0 passes, 1 fails, 2 warns, 3 panics, 4 hangs.
#[derive(Clone, Default)]
struct Dependency(Arc<AtomicU32>);

impl Dependency {
    fn set(&self, answer: u32) {
        self.0.store(answer, Ordering::SeqCst);
    }

    fn check(&self) -> Check {
        let answer = Arc::clone(&self.0);
        Check::new("db", move || {
            let answer = answer.load(Ordering::SeqCst);
            async move {
                match answer {
                    0 => Ok(ProbeOutcome::Pass),
                    1 => Err(CheckError::from("postgres://me:secret@db refused")),
                    2 => Ok(ProbeOutcome::Warn("saturated".into())),
                    3 => panic!("boom"),
                    _ => std::future::pending().await,
                }
            }
        })
        .interval(SECOND)
        .failing_after(3, 5 * SECOND)
    }
}

/// Probes run at whole seconds, so the test looks half a second later.
async fn half_past() {
    sleep(SECOND / 2).await;
}

#[test]
fn latches_and_signals_determine_readiness() {
    let health = Health::new();
    let mut changes = health.changes();
    assert!(*changes.borrow_and_update());
    let (a, b) = (health.latch("a"), health.latch("b"));
    drop(a);
    assert!(!health.is_ready());
    drop(b);
    assert!(health.is_ready());
    assert!(*changes.borrow_and_update());

    let critical = health.signal("lease", Criticality::Critical);
    assert!(!health.is_ready(), "not reported yet");
    critical.warn("late");
    assert!(health.is_ready());
    changes.mark_unchanged();
    critical.fail("lost");
    assert!(!health.is_ready());
    assert!(changes.has_changed().unwrap());
    assert!(!*changes.borrow_and_update());
    critical.ok();
    assert!(*changes.borrow());

    let degrades = health.signal("flags", Criticality::Degrades);
    degrades.fail("unreachable");
    assert!(!health.is_ready(), "never reached: a bad deploy stops");
    degrades.ok();
    degrades.fail("lost");
    assert!(health.is_ready(), "reached and lost: reported only");
}

#[test]
fn the_criticality_of_a_signal_applies_to_its_last_report() {
    let health = Health::new();
    let lease = health.signal("lease", Criticality::Degrades);
    lease.ok();
    lease.fail("expired");
    assert!(health.is_ready());
    lease.set_criticality(Criticality::Critical);
    assert!(!health.is_ready());
    lease.set_criticality(Criticality::Degrades);
    assert!(health.is_ready());
}

#[tokio::test(start_paused = true)]
async fn an_unreached_dependency_blocks_and_a_lost_one_degrades() {
    for (criticality, ready_when_lost) in [(Criticality::Degrades, true), (Criticality::Critical, false)] {
        let health = Health::new();
        let dependency = Dependency::default();
        dependency.set(1);
        health.check(dependency.check().criticality(criticality)).unwrap();
        assert!(!health.is_ready(), "not probed yet");
        sleep(60 * SECOND).await;
        assert!(!health.is_ready(), "never reached");

        dependency.set(0);
        sleep(SECOND).await;
        assert!(health.is_ready());
        dependency.set(1);
        sleep(60 * SECOND).await;
        assert_eq!(health.is_ready(), ready_when_lost, "{criticality:?}");
        let (code, text) = page(&health, "/readyz?verbose").await;
        assert_eq!(code.is_success(), ready_when_lost);
        assert!(text.contains("postgres://***@db refused"), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_check_fails_after_several_failures_and_some_time() {
    let health = Health::new();
    let dependency = Dependency::default();
    let critical = dependency.check().criticality(Criticality::Critical);
    health.check(critical).unwrap();
    half_past().await;
    assert!(health.is_ready());

    // Failures at 1, 2, 3, 4 and 5 s: enough of them, but not yet 5 s since the first.
    dependency.set(1);
    sleep(5 * SECOND).await;
    assert!(health.is_ready());
    sleep(SECOND).await;
    assert!(!health.is_ready());

    // One success resets the count.
    dependency.set(0);
    sleep(SECOND).await;
    assert!(health.is_ready());
    dependency.set(1);
    sleep(5 * SECOND).await;
    assert!(health.is_ready());
}

#[tokio::test(start_paused = true)]
async fn time_alone_does_not_fail_a_check() {
    let health = Health::new();
    let dependency = Dependency::default();
    let check = dependency.check().interval(10 * SECOND);
    health.check(check.criticality(Criticality::Critical)).unwrap();
    half_past().await;
    dependency.set(1);
    sleep(20 * SECOND).await;
    assert!(health.is_ready(), "two failures in 20 s");
    sleep(10 * SECOND).await;
    assert!(!health.is_ready());
}

#[tokio::test(start_paused = true)]
async fn recovery_can_require_several_successes() {
    let health = Health::new();
    let dependency = Dependency::default();
    let check = dependency.check().passing_after(3);
    health.check(check).unwrap();
    half_past().await;
    sleep(SECOND).await;
    assert!(!health.is_ready(), "two successes");
    sleep(SECOND).await;
    assert!(health.is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_panic_or_a_hang_is_a_failure_of_the_probe_only() {
    let health = Health::new();
    let dependency = Dependency::default();
    dependency.set(3);
    health.check(dependency.check()).unwrap();
    half_past().await;
    let (_, text) = page(&health, "/readyz").await;
    assert_eq!(text, "not ready\nfail db: the probe panicked: boom\n");

    dependency.set(4);
    sleep(4 * SECOND).await;
    let (_, text) = page(&health, "/readyz").await;
    assert_eq!(text, "not ready\nfail db: no answer within 2s\n");

    dependency.set(2);
    sleep(4 * SECOND).await;
    assert!(health.is_ready());
    let (_, text) = page(&health, "/readyz/db").await;
    assert_eq!(text, "ready\nwarn db: saturated\n");
}

#[tokio::test(start_paused = true)]
async fn probing_ends_with_the_last_clone() {
    let health = Health::new();
    let runs = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&runs);
    let check = Check::new("count", move || {
        counted.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Ok::<_, CheckError>(()))
    });
    health.check(check.interval(SECOND)).unwrap();
    let clone = health.clone();
    drop(health);
    half_past().await;
    sleep(3 * SECOND).await;
    assert_eq!(runs.load(Ordering::SeqCst), 4);
    drop(clone);
    advance(10 * SECOND).await;
    assert_eq!(runs.load(Ordering::SeqCst), 4);
    assert_eq!(Arc::strong_count(&runs), 1, "the task and its probe are gone");
}

#[tokio::test(start_paused = true)]
async fn the_health_document_has_status_age_and_duration() {
    let health = Health::new();
    let dependency = Dependency::default();
    health.check(dependency.check()).unwrap();
    let _latch = health.latch("warm-up");
    half_past().await;

    let (code, text) = page(&health, "/healthz").await;
    assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["status"], "fail");
    assert_eq!(document["checks"]["warm-up"][0]["status"], "fail");
    let db = &document["checks"]["db"][0];
    assert_eq!(db["status"], "pass");
    assert_eq!(db["age"], 0.5);
    assert_eq!(db["observedUnit"], "s");
    assert!(db["time"].as_str().unwrap().ends_with('Z'));

    let (code, text) = page(&health, "/healthz?exclude=other,warm-up").await;
    assert_eq!(code, StatusCode::OK);
    assert!(text.starts_with(r#"{"status":"pass""#), "{text}");
    let (code, _) = page(&health, "/readyz?exclude=other&exclude=warm-up").await;
    assert_eq!(code, StatusCode::OK);
    assert_eq!(page(&health, "/readyz/db").await.0, StatusCode::OK);
    assert_eq!(page(&health, "/readyz/none").await.0, StatusCode::NOT_FOUND);
    assert_eq!(page(&health, "/livez").await.0, StatusCode::OK, "whatever fails");
}

#[test]
fn an_unusable_check_is_refused_with_all_problems() {
    let check = Check::new("a/b", || std::future::ready(Ok::<_, CheckError>(())))
        .interval(Duration::ZERO)
        .time_limit(Duration::ZERO)
        .failing_after(0, SECOND)
        .passing_after(0);
    let error = Health::new().check(check).unwrap_err();
    assert_eq!(error.problems.len(), 5, "{error}");

    let check = Check::new("db", || std::future::ready(Ok::<_, CheckError>(())));
    let error = Health::new().check(check).unwrap_err();
    assert!(error.to_string().contains("Tokio runtime"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_group_is_queried_and_excluded_as_a_whole() {
    let health = Health::new();
    let (one, two) = (Dependency::default(), Dependency::default());
    two.set(1);
    health.check(one.check().named("orders-db").group("databases")).unwrap();
    health.check(two.check().named("users-db").group("databases")).unwrap();
    health.check(one.check().named("mail")).unwrap();
    half_past().await;

    let (code, text) = page(&health, "/readyz/databases").await;
    assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(text, "not ready\npass orders-db: ok\nfail users-db: postgres://***@db refused\n");
    assert_eq!(page(&health, "/readyz/orders-db").await.0, StatusCode::OK);
    let (code, text) = page(&health, "/readyz?verbose&exclude=databases").await;
    assert_eq!((code, text.as_str()), (StatusCode::OK, "ready\npass mail: ok\n"));
    let document: Value = serde_json::from_str(&page(&health, "/healthz").await.1).unwrap();
    assert_eq!(document["checks"]["users-db"][0]["group"], "databases");
    assert_eq!(document["checks"]["mail"][0].get("group"), None);

    let asked = ["orders-db", "users-db", "databases", "mail", "none"].map(|name| health.is_passing(name));
    assert_eq!(asked, [Some(true), Some(false), Some(false), Some(true), None]);
}

#[test]
fn status_changes_arrive_in_order_after_readiness() {
    let health = Health::new();
    let mut changes = health.status_changes();
    let latch = health.latch("warm-up");
    let lease = health.signal("lease", Criticality::Degrades);
    lease.ok();
    lease.ok();
    drop(latch);
    assert!(health.is_ready());
    lease.fail("lost");

    let (pass, warn, fail) = (Some(Status::Pass), Some(Status::Warn), Some(Status::Fail));
    let mut heard = Vec::new();
    while let Ok(change) = changes.try_recv() {
        heard.push((change.name.to_string(), change.from, change.to));
    }
    let expected = [
        ("warm-up", None, fail),
        ("lease", None, fail),
        ("lease", fail, pass),
        ("warm-up", fail, None),
        ("lease", pass, warn),
    ];
    assert_eq!(heard, expected.map(|(name, from, to)| (name.to_owned(), from, to)));
}

#[test]
fn an_unusable_url_is_refused_with_the_reason() {
    for (url, why) in [
        ("no address", "is not a URL"),
        ("/readyz", "must begin with `http://`"),
        ("https://db/", "must begin with `http://`"),
        ("http://me:secret@db/", "must not contain a user"),
    ] {
        let error = Check::http("search", url).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    assert!(Check::http("search", "http://[::1]:80/readyz").is_ok());
}
