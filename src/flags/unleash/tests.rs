//! Against a server that answers what each test wants, on a real socket.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::BodyExt;

use super::{Backup, BackupError, FileBackup, UnleashOptions};
use crate::flags::{FixedFlag, Flag, FlagProblem, FlagProblemKind, Flags, FlagsError, Subject, Switch};

const A: Flag = Flag::new("a", false);
const FALLBACK: Flag = Flag::new("a", true);
const LIMIT: Duration = Duration::from_secs(10);

#[derive(Clone)]
enum Reply {
    Features(String),
    Status(StatusCode, String),
    Mute,
}

struct Seen {
    method: Method,
    path: String,
    headers: HeaderMap,
    body: String,
    refused: bool,
}

/// Answers polls with `reply`, and anything else with 202.
#[derive(Clone)]
struct Server {
    url: String,
    reply: Arc<Mutex<Reply>>,
    refuse_posts: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

fn features(of: &[(&str, bool, &str)]) -> Reply {
    let features: Vec<_> = of
        .iter()
        .map(|(name, enabled, payload)| {
            let variant = serde_json::json!({
                "name": "v", "weight": 1000, "stickiness": "default",
                "payload": {"type": "string", "value": payload},
            });
            serde_json::json!({
                "name": name, "enabled": enabled, "strategies": [{
                    "name": "flexibleRollout",
                    "parameters": {"rollout": "100", "stickiness": "default", "groupId": name},
                    "variants": if payload.is_empty() { vec![] } else { vec![variant] },
                }],
            })
        })
        .collect();
    Reply::Features(serde_json::json!({"version": 2, "features": features}).to_string())
}

impl Server {
    async fn start(reply: Reply) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            url: format!("http://{}", listener.local_addr().unwrap()),
            reply: Arc::new(Mutex::new(reply)),
            refuse_posts: Arc::default(),
            seen: Arc::default(),
        };
        let handler = server.clone();
        let app = Router::new().fallback(async move |request| handler.answer(request).await);
        tokio::spawn(async move { axum::serve(listener, app).await });
        server
    }

    async fn answer(&self, request: Request<Body>) -> Response {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let asked = head.headers.get(header::IF_NONE_MATCH).cloned();
        let poll = head.method == Method::GET;
        let refused = !poll && self.refuse_posts.load(Ordering::SeqCst);
        self.seen.lock().unwrap().push(Seen {
            method: head.method,
            path: head.uri.path().to_owned(),
            headers: head.headers,
            body: String::from_utf8(body.into()).unwrap(),
            refused,
        });
        if refused {
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        if !poll {
            return StatusCode::ACCEPTED.into_response();
        }
        let reply = self.reply.lock().unwrap().clone();
        match reply {
            Reply::Mute => std::future::pending().await,
            Reply::Status(status, text) => (status, [(header::ETAG, "\"bad\"")], text).into_response(),
            Reply::Features(text) => {
                let etag = format!("\"{}\"", text.len());
                if asked.is_some_and(|asked| asked.as_bytes() == etag.as_bytes()) {
                    return StatusCode::NOT_MODIFIED.into_response();
                }
                ([(header::ETAG, etag)], text).into_response()
            }
        }
    }

    fn reply(&self, reply: Reply) {
        *self.reply.lock().unwrap() = reply;
    }

    fn options(&self) -> UnleashOptions {
        UnleashOptions {
            interval: Duration::from_millis(20),
            time_limit: Duration::from_millis(100),
            stale_after: Duration::from_millis(400),
            ..UnleashOptions::new(&self.url, "token", "app", "one")
        }
    }

    fn polls(&self) -> usize {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|seen| seen.method == Method::GET).count()
    }

    async fn polled_again(&self) {
        // The one that may be under way saw the reply of before.
        let enough = self.polls() + 2;
        until("another poll", || self.polls() >= enough).await;
    }

    fn bodies(&self, path: &str) -> Vec<serde_json::Value> {
        self.sent(path, |_| true)
    }

    fn taken(&self, path: &str) -> Vec<serde_json::Value> {
        self.sent(path, |seen| !seen.refused)
    }

    fn sent(&self, path: &str, which: impl Fn(&Seen) -> bool) -> Vec<serde_json::Value> {
        let seen = self.seen.lock().unwrap();
        let sent = seen.iter().filter(|seen| seen.path == path && which(seen));
        sent.map(|seen| serde_json::from_str(&seen.body).unwrap()).collect()
    }

    fn refuse_posts(&self, refuse: bool) {
        self.refuse_posts.store(refuse, Ordering::SeqCst);
    }
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.expect(what);
}

async fn start(server: &Server) -> Flags {
    let flags = Flags::unleash(server.options()).unwrap();
    tokio::time::timeout(LIMIT, flags.ready()).await.unwrap();
    flags
}

#[tokio::test]
async fn the_declared_default_counts_until_the_server_was_reached() {
    let server = Server::start(Reply::Status(StatusCode::BAD_GATEWAY, String::new())).await;
    let flags = Flags::unleash(server.options()).unwrap();
    server.polled_again().await;
    assert!(!flags.is_ready() && !flags.is_fresh());
    assert!(flags.decide(&FALLBACK, &Subject::new()));
    assert!(!flags.decide(&A, &Subject::new()));
    assert_eq!(flags.switch("a"), Switch::Unknown);
    assert!(flags.coverage(["a"]).is_empty());

    server.reply(features(&[("a", false, "")]));
    tokio::time::timeout(LIMIT, flags.ready()).await.unwrap();
    assert!(!flags.decide(&FALLBACK, &Subject::new()));
    until("fresh", || flags.is_fresh()).await;
    assert_eq!(flags.switch("a"), Switch::Off);
}

#[tokio::test]
async fn only_a_whole_good_answer_is_applied() {
    let server = Server::start(features(&[("a", true, "")])).await;
    let flags = start(&server).await;
    let off = match features(&[("a", false, "")]) {
        Reply::Features(text) => text,
        _ => unreachable!(),
    };
    for bad in [
        Reply::Status(StatusCode::SERVICE_UNAVAILABLE, off.clone()),
        Reply::Status(StatusCode::UNAUTHORIZED, off.clone()),
        Reply::Status(StatusCode::FOUND, off.clone()),
        Reply::Status(StatusCode::OK, off[..off.len() - 1].to_owned()),
        Reply::Status(StatusCode::OK, "<html>".to_owned()),
    ] {
        server.reply(bad);
        server.polled_again().await;
        assert!(flags.decide(&A, &Subject::new()));
        until("stale", || !flags.is_fresh()).await;
        server.reply(features(&[("a", true, "")]));
        until("fresh", || flags.is_fresh()).await;
    }
    // The ETag that came with what could not be used was not taken over either.
    server.reply(Reply::Features(off));
    until("the good answer", || !flags.decide(&A, &Subject::new())).await;
    let seen = server.seen.lock().unwrap();
    let mut asked = seen.iter().filter_map(|seen| seen.headers.get(header::IF_NONE_MATCH));
    assert!(asked.all(|etag| etag != "\"bad\""));
}

#[tokio::test]
async fn a_mute_server_is_given_up_and_its_state_grows_stale() {
    let server = Server::start(features(&[("a", true, "ramp:25")])).await;
    let flags = start(&server).await;
    until("fresh", || flags.is_fresh()).await;
    assert_eq!(flags.switch("a"), Switch::On(Some("ramp:25".into())));
    let mut changed = flags.changed();
    changed.mark_unchanged();

    server.reply(Reply::Mute);
    until("stale", || !flags.is_fresh()).await;
    assert_eq!(flags.switch("a"), Switch::Unknown);
    assert!(flags.decide(&A, &Subject::new()));

    server.reply(features(&[("a", true, "ramp:25")]));
    // Nothing changed but that it is known again, and that is told too.
    tokio::time::timeout(LIMIT, changed.changed()).await.unwrap().unwrap();
    assert_eq!(flags.switch("a"), Switch::On(Some("ramp:25".into())));
}

#[tokio::test]
async fn what_did_not_change_is_not_downloaded_and_not_announced() {
    let server = Server::start(features(&[("a", true, "")])).await;
    let registry = prometheus::Registry::new();
    let flags = start(&server).await;
    flags.register(&registry, &crate::release::Release::new("app", "stable").unwrap()).unwrap();
    let mut changed = flags.changed();
    changed.mark_unchanged();
    server.polled_again().await;
    server.polled_again().await;
    assert!(!changed.has_changed().unwrap());
    server.reply(features(&[("a", false, ""), ("b", true, "")]));
    tokio::time::timeout(LIMIT, changed.changed()).await.unwrap().unwrap();
    assert!(!flags.decide(&A, &Subject::new()));

    let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    assert!(text.contains(r#"cutover_flag_fetches_total{result="changed"} 2"#), "{text}");
    assert!(!text.contains(r#"cutover_flag_fetches_total{result="unchanged"} 0"#), "{text}");
    let seconds = text
        .lines()
        .find_map(|line| line.strip_prefix("cutover_flags_last_success_timestamp_seconds "))
        .unwrap();
    assert!(seconds.parse::<f64>().unwrap() > 1.7e9, "{seconds}");

    let seen = server.seen.lock().unwrap();
    let mut asked = seen.iter().filter_map(|seen| seen.headers.get(header::IF_NONE_MATCH));
    assert!(asked.next().is_some());
    let poll = &seen[0];
    assert_eq!(poll.path, "/api/client/features");
    assert_eq!(poll.headers[header::AUTHORIZATION], "token");
    assert_eq!(poll.headers["unleash-appname"], "app");
    assert_eq!(poll.headers["unleash-instanceid"], "one");
}

#[tokio::test]
async fn closing_sends_the_last_counts() {
    let server = Server::start(features(&[("a", true, "")])).await;
    let flags = start(&server).await;
    until("registered", || !server.bodies("/api/client/register").is_empty()).await;
    for _ in 0..3 {
        flags.decide(&A, &Subject::new());
    }
    tokio::time::timeout(LIMIT, flags.close()).await.unwrap();
    let sent = server.bodies("/api/client/metrics");
    let yes: u64 = sent.iter().filter_map(|sent| sent["bucket"]["toggles"]["a"]["yes"].as_u64()).sum();
    assert_eq!(yes, 3, "{sent:?}");
    assert_eq!(sent[0]["appName"], "app");

    let polls = server.polls();
    flags.close().await;
    tokio::time::sleep(server.options().interval * 3).await;
    assert_eq!(server.polls(), polls);
    assert!(flags.decide(&A, &Subject::new()));
}

#[tokio::test]
async fn closing_does_not_wait_for_a_mute_server() {
    let server = Server::start(Reply::Mute).await;
    let flags = Flags::unleash(UnleashOptions {
        time_limit: Duration::from_secs(3600),
        stale_after: Duration::from_secs(7200),
        ..server.options()
    })
    .unwrap();
    until("a poll", || server.polls() > 0).await;
    tokio::time::timeout(LIMIT, flags.close()).await.unwrap();
}

#[tokio::test]
async fn polling_ends_with_the_last_handle() {
    let server = Server::start(features(&[])).await;
    let flags = start(&server).await;
    server.polled_again().await;
    drop(flags);
    until("the end", {
        let mut last = (server.polls(), std::time::Instant::now());
        move || {
            let polls = server.polls();
            if polls != last.0 {
                last = (polls, std::time::Instant::now());
            }
            last.1.elapsed() > Duration::from_millis(200)
        }
    })
    .await;
}

fn metrics(flags: &Flags) -> impl Fn(&str) -> bool + use<> {
    let registry = prometheus::Registry::new();
    flags.register(&registry, &crate::release::Release::new("app", "stable").unwrap()).unwrap();
    move |line| {
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        text.lines().any(|other| other == line)
    }
}

#[tokio::test]
async fn a_restart_while_the_server_is_away_begins_with_the_last_state() {
    let server = Server::start(features(&[("a", true, "")])).await;
    let path = std::env::temp_dir().join(format!("flags-backup-{}", std::process::id()));
    let options =
        UnleashOptions { backup: Some(Arc::new(FileBackup::new(path.clone()))), ..server.options() };
    let flags = Flags::unleash(options.clone()).unwrap();
    let saved = metrics(&flags);
    until("saved", || saved(r#"cutover_flag_backups_total{result="saved"} 1"#)).await;
    let snapshot = flags.snapshot();
    flags.close().await;

    server.reply(Reply::Mute);
    let again = Flags::unleash(options.clone()).unwrap();
    let elsewhere = Flags::unleash(UnleashOptions { bootstrap: snapshot, ..server.options() }).unwrap();
    for flags in [&again, &elsewhere] {
        tokio::time::timeout(LIMIT, flags.ready()).await.unwrap();
        assert!(!flags.is_fresh());
        assert!(flags.decide(&A, &Subject::new()));
        assert_eq!(flags.switch("a"), Switch::Unknown);
    }
    assert!(metrics(&again)(r#"cutover_flag_backups_total{result="restored"} 1"#));

    // Good JSON, but not what was kept.
    let kept = std::fs::read_to_string(&path).unwrap();
    for damaged in [kept.replace(r#""enabled":true"#, r#""enabled":null"#), kept[1..].to_owned(), "{}".into()]
    {
        std::fs::write(&path, damaged).unwrap();
        let flags = Flags::unleash(options.clone()).unwrap();
        let refused = metrics(&flags);
        until("refused", || refused(r#"cutover_flag_backups_total{result="refused"} 1"#)).await;
        assert!(!flags.is_ready());
        assert!(flags.decide(&FALLBACK, &Subject::new()));
    }
    std::fs::remove_file(path).unwrap();
}

/// A place that takes its time: for ever, unless a state is given.
#[derive(Debug)]
struct Slow(tokio::sync::Mutex<tokio::sync::mpsc::Receiver<Bytes>>);

#[async_trait::async_trait]
impl Backup for Slow {
    async fn load(&self) -> Result<Option<Bytes>, BackupError> {
        Ok(self.0.lock().await.recv().await)
    }

    async fn save(&self, _: Bytes) -> Result<(), BackupError> {
        std::future::pending().await
    }
}

#[tokio::test]
async fn a_backup_neither_holds_up_the_server_nor_overrules_it() {
    let server = Server::start(features(&[("a", true, "")])).await;
    let (give, take) = tokio::sync::mpsc::channel(1);
    let backup: Arc<dyn Backup> = Arc::new(Slow(tokio::sync::Mutex::new(take)));
    let flags = Flags::unleash(UnleashOptions {
        backup: Some(backup),
        time_limit: LIMIT,
        stale_after: LIMIT * 3,
        ..server.options()
    })
    .unwrap();
    // The server answers while the backup has said nothing.
    until("fresh", || flags.is_fresh()).await;
    assert!(flags.decide(&A, &Subject::new()));
    let Reply::Features(off) = features(&[("a", false, "")]) else { unreachable!() };
    give.send(super::backup::seal(off.as_bytes())).await.unwrap();
    // The channel holds one: room for another means that it was taken, and what is done with it comes next.
    drop(give.reserve().await.unwrap());
    server.polled_again().await;
    assert!(flags.decide(&A, &Subject::new()));
    // Nor does a save that hangs.
    tokio::time::timeout(LIMIT, flags.close()).await.unwrap();
}

#[tokio::test]
async fn an_endless_answer_is_given_up() {
    let server = Server::start(features(&[("a", true, "")])).await;
    let flags = start(&server).await;
    let Reply::Features(mut huge) = features(&[("a", false, "")]) else { unreachable!() };
    huge.push_str(&" ".repeat(super::backup::LARGEST_STATE));
    server.reply(Reply::Features(huge));
    until("stale", || !flags.is_fresh()).await;
    assert!(flags.decide(&A, &Subject::new()));
}

#[tokio::test]
async fn a_flag_that_breaks_the_engine_has_its_default_and_the_others_go_on() {
    let broken = serde_json::json!({"version": 2, "features": [
        {"name": "a", "enabled": true, "strategies": [{
            "name": "flexibleRollout",
            "parameters": {"rollout": "100", "stickiness": "default", "groupId": "a"},
            "variants": [{"name": "v", "weight": 0, "stickiness": "default"}],
        }]},
        {"name": "b", "enabled": true, "strategies": [{"name": "default"}]},
    ]});
    let server = Server::start(Reply::Features(broken.to_string())).await;
    let flags = start(&server).await;
    for subject in [Subject::new(), Subject::new().user("u1")] {
        assert_eq!(flags.variant("a", &subject), None);
        assert_eq!(flags.value(&Flag::new("a", 7), &subject), 7);
        assert!(flags.decide(&Flag::new("b", false), &subject));
    }
    // No reason to turn a fleet back, unlike one that is not there.
    assert!(matches!(flags.switch("a"), Switch::Unknown));
    assert!(matches!(flags.switch("c"), Switch::Off));
}

#[tokio::test]
async fn counts_that_the_server_did_not_take_are_sent_again() {
    let server = Server::start(features(&[("a", true, "one")])).await;
    let options = UnleashOptions { metrics_interval: Duration::from_millis(1), ..server.options() };
    let flags = Flags::unleash(options).unwrap();
    tokio::time::timeout(LIMIT, flags.ready()).await.unwrap();
    server.refuse_posts(true);
    flags.decide(&A, &Subject::new());
    flags.variant("a", &Subject::new());
    let tries = || server.bodies("/api/client/metrics").len();
    until("refused twice", || tries() >= 2).await;
    server.refuse_posts(false);
    let refused = tries();
    until("taken", || tries() > refused).await;
    flags.decide(&A, &Subject::new());
    flags.close().await;
    let sent = server.bodies("/api/client/metrics");
    let toggle = |sent: &serde_json::Value| sent["bucket"]["toggles"]["a"].clone();
    assert!(sent[..refused].iter().all(|sent| toggle(sent)["yes"].as_u64() > Some(0)), "{sent:?}");
    // One may have been on its way when the server changed its mind.
    let taken = server.taken("/api/client/metrics");
    let sum = |of: &dyn Fn(serde_json::Value) -> Option<u64>| -> u64 {
        taken.iter().filter_map(|sent| of(toggle(sent))).sum()
    };
    assert_eq!(sum(&|a| a["yes"].as_u64()), 3, "{taken:?}");
    assert_eq!(sum(&|a| a["variants"]["v"].as_u64()), 1, "{taken:?}");
}

#[tokio::test]
async fn strategies_that_look_at_the_application_see_it() {
    let text = serde_json::json!({"version": 2, "features": [{
        "name": "a", "enabled": true, "stale": true, "strategies": [{
            "name": "default",
            "constraints": [{"contextName": "appName", "operator": "IN", "values": ["app"]}],
        }],
    }]});
    let server = Server::start(Reply::Features(text.to_string())).await;
    let flags = start(&server).await;
    assert!(flags.decide(&A, &Subject::new()));
    // There is a state, but not for this one.
    assert!(flags.decide(&Flag::new("b", true), &Subject::new()));
    assert!(flags.variant("b", &Subject::new()).is_none());
    let gap = |flag: &str, kind| FlagProblem { flag: flag.into(), kind };
    assert_eq!(
        flags.coverage(["a", "b"]),
        [gap("a", FlagProblemKind::Stale), gap("b", FlagProblemKind::Missing)]
    );
    assert!(matches!(flags.set("a", FixedFlag::OFF), Err(FlagsError::NotFixed)));
}

#[test]
fn without_a_runtime_it_says_so() {
    let options = UnleashOptions::new("http://localhost", "token", "app", "one");
    assert!(matches!(Flags::unleash(options), Err(FlagsError::NoRuntime)));
}
