//! Clients that send too much, too slowly, or too often.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::{Router, routing::get};
use cutover::drain::DrainOptions;
use cutover_testkit::wait_until;
use hyper::{Request, StatusCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{LIMIT, Running, hello, http1, http2, options, request, start, text};

async fn still_serves(running: &Running) {
    let (mut sender, _driver) = http1(running.address).await;
    assert_eq!(text(sender.send_request(request("/")).await.unwrap()).await, "hello");
}

#[tokio::test]
async fn a_head_without_end_is_refused() {
    let running = start(options(), hello()).await;
    let mut stream = running.raw(b"GET / HTTP/1.1\r\nhost: t\r\n").await;
    let (mut read, mut write) = stream.split();
    let mut answer = Vec::new();
    let sending = async {
        let line = [b"x-filler: ".as_slice(), &[b'a'; 8 * 1024], b"\r\n"].concat();
        // Far more than any head; the server closes the connection before the end.
        for _ in 0..1024 {
            if write.write_all(&line).await.is_err() {
                return true;
            }
        }
        false
    };
    let (refused, _) =
        timeout(LIMIT, async { tokio::join!(sending, read.read_to_end(&mut answer)) }).await.unwrap();
    assert!(refused, "8 MiB of head were accepted");
    running.until_counted("head_too_large", 1.0).await;
    still_serves(&running).await;

    let (mut sender, _driver) = http2(running.address).await;
    let large = "a".repeat(64 * 1024);
    let request = Request::get("http://t/").header("x-filler", large);
    match sender.send_request(request.body(http_body_util::Empty::new()).unwrap()).await {
        Ok(response) => assert_eq!(response.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
        Err(error) => assert!(!error.is_timeout(), "{error}"),
    }
    still_serves(&running).await;
    running.drain.begin();
    assert_eq!(running.report().await.cut, []);
}

#[tokio::test]
async fn invalid_bytes_end_their_own_connection_only() {
    let running = start(options(), hello()).await;
    for nonsense in [
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n".as_slice(),
        b"GET / HTTP/1.1\r\nhost: t\r\ncontent-length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nb\0d: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        let mut stream = running.raw(nonsense).await;
        let mut answer = Vec::new();
        // The server may reset the connection without an answer.
        let _ = timeout(LIMIT, stream.read_to_end(&mut answer)).await.unwrap();
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    }
    running.until_counted("malformed", 3.0).await;
    still_serves(&running).await;
    assert_eq!(running.refused("malformed"), 3.0, "all but the one of HTTP/2");
    running.drain.begin();
    assert_eq!(running.report().await.cut, []);
}

/// What became of the requests of a handler that answers after some time.
#[derive(Default)]
struct Requests {
    begun: AtomicU32,
    given_up: AtomicU32,
}

impl Requests {
    async fn reach(&self, count: impl Fn(&Self) -> &AtomicU32) {
        let is_reached = async || Ok::<_, Infallible>(count(self).load(Ordering::SeqCst) == 1);
        wait_until("a request", LIMIT, is_reached).await.unwrap();
    }
}

/// Is dropped when its request is given up.
struct Unfinished(Arc<Requests>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        self.0.given_up.fetch_add(1, Ordering::SeqCst);
    }
}

fn answers_after(time: Duration) -> (Router, Arc<Requests>) {
    let requests = Arc::<Requests>::default();
    let own = Arc::clone(&requests);
    let handler = async move || {
        own.begun.fetch_add(1, Ordering::SeqCst);
        let unfinished = Unfinished(own);
        sleep(time).await;
        std::mem::forget(unfinished);
        "hello"
    };
    (Router::new().route("/", get(handler)), requests)
}

#[tokio::test]
async fn a_client_that_sends_no_more_is_answered() {
    let (app, requests) = answers_after(Duration::from_millis(200));
    let running = start(DrainOptions { half_closed_timeout: LIMIT, ..options() }, app).await;
    for head in ["GET / HTTP/1.1\r\nhost: t\r\n\r\n", "GET / HTTP/1.0\r\n\r\n"] {
        let mut stream = running.raw(head.as_bytes()).await;
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        // The connection ends with the response.
        timeout(LIMIT, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.ends_with("hello"), "{head}: {answer:?}");
    }
    assert_eq!(requests.given_up.load(Ordering::SeqCst), 0);
    running.drain.begin();
    assert_eq!(running.report().await.cut, []);
}

#[tokio::test]
async fn the_request_of_a_client_that_is_gone_is_given_up() {
    for half_closed_timeout in [Duration::from_millis(100), Duration::ZERO] {
        let (app, requests) = answers_after(LIMIT * 4);
        let running = start(DrainOptions { half_closed_timeout, ..options() }, app).await;
        let stream = running.raw(b"GET / HTTP/1.1\r\nhost: t\r\n\r\n").await;
        requests.reach(|requests| &requests.begun).await;
        drop(stream);
        requests.reach(|requests| &requests.given_up).await;
        running.drain.begin();
        assert_eq!(running.report().await.cut, []);
    }
}

/// Hundreds at once: idle, with half of a head, sending a byte now and then, and with requests during the drain.
#[tokio::test]
async fn many_slow_connections_do_not_delay_a_drain() {
    let (hook_time, margin) = (Duration::from_secs(5), Duration::from_secs(10));
    let options = DrainOptions { grace: Duration::from_secs(25), hook_time, margin, ..options() };
    let running = start(options.clone(), hello()).await;
    let mut silent = Vec::new();
    for number in 0..200_usize {
        silent.push(running.raw(&b"GET / HTTP/1.1\r\n"[..number % 16]).await);
    }
    let mut slow = JoinSet::new();
    for _ in 0..20 {
        let mut stream = running.raw(b"GET / HTTP/1.1\r\nx-slow: ").await;
        slow.spawn(async move {
            while stream.write_all(b"a").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    }
    running.drain.begin();
    let mut asking = JoinSet::new();
    for _ in 0..100 {
        let address = running.address;
        asking.spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nhost: t\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        });
    }
    while let Some(answer) = timeout(LIMIT, asking.join_next()).await.unwrap() {
        let answer = answer.unwrap();
        assert!(answer.ends_with("hello"), "{answer:?}");
    }
    let report = running.report().await;
    assert!(report.waited < options.grace, "{:?}", report.waited);
    assert!(report.cut.len() >= 20, "at least the slow ones: {}", report.cut.len());
    timeout(LIMIT, async { while slow.join_next().await.is_some() {} }).await.unwrap();
    drop(silent);
}
