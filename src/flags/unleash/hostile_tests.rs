//! A flag server that answers badly: the last state stays in use, and what happened is said.

use std::io::Write;
use std::time::{Duration, Instant};

use flate2::{Compression, write::GzEncoder};
use http::{StatusCode, header};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::UnleashOptions;
use super::backup::LARGEST_STATE;
use super::shape::LONGEST;
use super::test_server::{A, LIMIT, Reply, Server, features, start, until};
use crate::flags::{FetchErrorKind, Flag, Flags, Subject, Switch, SwitchProblem};

fn on() -> Reply {
    features(&[("a", true, "")])
}

fn state(features: Value) -> Reply {
    Reply::Features(json!({"version": 2, "features": features}).to_string())
}

fn flag(name: &str, enabled: bool, strategies: Value) -> Value {
    json!({"name": name, "enabled": enabled, "strategies": strategies})
}

/// Flags of a server whose large answers take long.
async fn patient(server: &Server) -> Flags {
    let (time_limit, stale_after) = (LIMIT / 2, LIMIT * 2);
    let flags = Flags::unleash(UnleashOptions { time_limit, stale_after, ..server.options() }).unwrap();
    tokio::time::timeout(LIMIT, flags.ready()).await.unwrap();
    flags
}

/// The flag stays on, and the error has this text.
async fn refused(server: &Server, flags: &Flags, reply: Reply, part: &str) {
    server.reply(reply);
    until(part, || flags.last_fetch_error().is_some_and(|error| error.message.contains(part))).await;
    assert!(flags.decide(&A, &Subject::new()), "{part}");
    server.reply(on());
    until("fresh", || flags.last_fetch_error().is_none()).await;
}

#[tokio::test]
async fn a_compressed_answer_is_limited_by_its_real_size() {
    let server = Server::start(on()).await;
    let flags = patient(&server).await;
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    let blanks = vec![b' '; 1 << 20];
    for _ in 0..256 {
        gzip.write_all(&blanks).unwrap();
    }
    let bomb = gzip.finish().unwrap();
    assert!(bomb.len() < 4 << 20);
    // Not one byte more than shows that it is too large.
    let limit = format!("has {} bytes, more than the limit", LARGEST_STATE + 1);
    let coding = |coding: &str| (header::CONTENT_ENCODING, coding.to_owned());
    refused(&server, &flags, Reply::With(StatusCode::OK, coding("gzip"), bomb), &limit).await;
    refused(&server, &flags, Reply::With(StatusCode::OK, coding("gzip"), b"plain".to_vec()), "gzip: ").await;
    // The name of a coding is not case-sensitive (RFC 9110, section 8.4.1).
    let Reply::Features(text) = features(&[("a", false, "")]) else { unreachable!() };
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(text.as_bytes()).unwrap();
    server.reply(Reply::With(StatusCode::OK, coding("GZip"), gzip.finish().unwrap()));
    until("the change", || !flags.decide(&A, &Subject::new())).await;
}

#[tokio::test]
async fn a_redirect_is_named_and_the_token_does_not_follow_it() {
    let (server, other) = (Server::start(on()).await, Server::start(on()).await);
    let flags = start(&server).await;
    let to = format!("{}/api/client/features?secret=hunter2", other.url());
    let redirect = Reply::With(StatusCode::FOUND, (header::LOCATION, to), Vec::new());
    refused(
        &server,
        &flags,
        redirect,
        &format!("302 Found, and leads to {}/api/client/features", other.url()),
    )
    .await;
    assert_eq!(other.polls(), 0, "the other server got a request");
}

/// Serves one byte of a state at a time.
#[tokio::test]
async fn an_answer_that_drips_ends_at_the_time_limit() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let head = "HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n{";
                let mut part = head.as_bytes();
                while stream.write_all(part).await.is_ok() {
                    part = b" ";
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
        }
    });
    let server = Server::start(on()).await;
    let options = UnleashOptions { url: format!("http://{address}"), ..server.options() };
    let limit = options.time_limit;
    let begun = Instant::now();
    let flags = Flags::unleash(options).unwrap();
    until("the limit", || flags.last_fetch_error().is_some()).await;
    let error = flags.last_fetch_error().unwrap();
    assert_eq!(error.kind, FetchErrorKind::Unavailable);
    assert!(error.message.contains("no answer within"), "{error}");
    assert!(begun.elapsed() >= limit);
}

#[tokio::test]
async fn a_server_that_wants_no_pause_is_not_asked_in_a_loop() {
    let pauses = ["0", "-1", "99999999999999999999", "soon", "Thu, 01 Jan 1970 00:00:00 GMT"];
    for pause in pauses {
        let header = (header::RETRY_AFTER, pause.to_owned());
        let server = Server::start(Reply::With(StatusCode::TOO_MANY_REQUESTS, header, Vec::new())).await;
        let begun = Instant::now();
        let _flags = Flags::unleash(server.options()).unwrap();
        server.polled_again().await;
        server.polled_again().await;
        // Pauses double: 20 ms, 40 ms, 80 ms.
        assert!(begun.elapsed() > server.options().interval * 5, "{pause}: {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn a_flag_that_would_overflow_the_stack_is_refused() {
    let server = Server::start(on()).await;
    let flags = patient(&server).await;
    let constraint = json!({"contextName": "userId", "operator": "NOT_IN", "values": ["x"]});
    let many = |item: Value, count: usize| Value::from(vec![item; count]);
    let default = json!({"name": "default"});
    let constrained = json!([{"name": "default", "constraints": many(constraint.clone(), 50_000)}]);
    let segments = json!([{"name": "default", "segments": vec![1; 1_000]}]);
    let segmented = json!({
        "version": 2, "features": [flag("a", false, segments)],
        "segments": [{"id": 1, "name": "s", "constraints": many(constraint.clone(), 50)}],
    });
    let part = "more than the limit of 500";
    refused(&server, &flags, state(json!([flag("a", false, many(default.clone(), 50_000))])), part).await;
    refused(&server, &flags, state(json!([flag("a", false, constrained)])), part).await;
    refused(&server, &flags, Reply::Features(segmented.to_string()), part).await;

    // At the limit, a flag is decided, also on a thread of the runtime, and dropped again.
    let longest = json!([{"name": "default", "constraints": many(constraint, LONGEST - 1)}]);
    server.reply(state(json!([flag("b", true, longest)])));
    let decide = |flags: Flags| move || flags.decide(&Flag::new("b", false), &Subject::new().user("y"));
    until("the long flag", decide(flags.clone())).await;
    let decided = std::thread::Builder::new().stack_size(1 << 20).spawn(decide(flags.clone())).unwrap();
    assert!(decided.join().unwrap());
    server.reply(state(json!([flag("b", true, many(default, LONGEST))])));
    until("the other long flag", || flags.decide(&Flag::new("b", false), &Subject::new())).await;
    refused(
        &server,
        &flags_of(&server).await,
        Reply::Status(StatusCode::OK, "{}".into()),
        "no list of flags",
    )
    .await;
}

async fn flags_of(server: &Server) -> Flags {
    server.reply(on());
    start(server).await
}

#[tokio::test]
async fn a_flag_that_was_sent_twice_steers_nothing() {
    let default = || json!([{"name": "default"}]);
    let twice = |first, second| {
        state(json!([flag("a", first, default()), flag("b", true, default()), flag("a", second, default())]))
    };
    for (first, second) in [(true, false), (false, true), (true, true)] {
        let server = Server::start(twice(first, second)).await;
        let flags = start(&server).await;
        until("fresh", || flags.is_fresh()).await;
        let Switch::Unknown(SwitchProblem::Ambiguous(text)) = flags.switch("a") else {
            panic!("{first} {second}: {:?}", flags.switch("a"))
        };
        assert!(text.contains("sent it 2 times"), "{text}");
        assert!(flags.decide(&Flag::new("b", false), &Subject::new()));
    }
    let server = Server::start(twice(false, false)).await;
    let flags = start(&server).await;
    until("off", || flags.switch("a") == Switch::Off).await;
}

#[tokio::test]
async fn flags_that_depend_on_each_other_are_decided() {
    let child = |name: &str, parent: &str| {
        let mut flag = flag(name, true, json!([{"name": "default"}]));
        flag["dependencies"] = json!([{"feature": parent}]);
        flag
    };
    let server = Server::start(state(json!([child("a", "b"), child("b", "a"), child("c", "c")]))).await;
    let flags = start(&server).await;
    for name in ["a", "b", "c"] {
        assert!(!flags.decide(&Flag::new(name, true), &Subject::new()), "{name}");
    }
}
