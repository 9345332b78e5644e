//! Endings that only a real connection has, as the metrics page shows them.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::{
    convert::Infallible,
    net::SocketAddr,
    time::{Duration, Instant},
};

use axum::{Router, body::Body, http::HeaderMap, response::Response, routing::get};
use bytes::Bytes;
use cutover::{
    drain::{Drain, DrainOptions},
    health::Health,
    metrics::Metrics,
    release::Release,
};
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Empty};
use hyper::{Request, client::conn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};

const LIMIT: Duration = Duration::from_secs(10);

struct Running {
    metrics: Metrics,
    drain: Drain,
    address: SocketAddr,
}

async fn start() -> Running {
    let metrics = Metrics::new(&Release::new("test", "canary").unwrap()).unwrap();
    let drain = Drain::new(&Health::new(), DrainOptions::default()).unwrap();
    let endless = || {
        let chunks = stream::repeat_with(|| Ok::<_, Infallible>("x".repeat(1024)));
        Body::from_stream(chunks.then(async |chunk| {
            tokio::time::sleep(Duration::from_millis(1)).await;
            chunk
        }))
    };
    let broken = || {
        let chunks = [Ok("half"), Err(std::io::Error::other("broken"))];
        Body::from_stream(stream::iter(chunks).then(async |chunk| {
            // Lets the head and the first half go out before the error.
            tokio::task::yield_now().await;
            chunk
        }))
    };
    // More chunks than the length allows: the server stops reading without being told.
    let sized = || {
        let chunks = stream::iter(["half", "half"]).map(Ok::<_, Infallible>);
        let body = Body::from_stream(chunks.chain(stream::pending()));
        Response::builder().header("content-length", 8).body(body).unwrap()
    };
    let panics = async |headers: HeaderMap| -> &'static str {
        assert!(headers.is_empty(), "this handler always fails");
        "unreachable"
    };
    let app = Router::new()
        .route("/fine", get(|| async { "fine" }))
        .route("/endless", get(move || async move { endless() }))
        .route("/broken", get(move || async move { broken() }))
        .route("/sized", get(move || async move { sized() }))
        .route("/hangs", get(std::future::pending::<&'static str>))
        .route("/panics", get(panics))
        .layer(metrics.layer());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = drain.clone();
    tokio::spawn(async move { serving.serve(listener, app).await });
    Running { metrics, drain, address }
}

#[derive(Clone, Copy, PartialEq)]
enum Leave {
    AtTheEnd,
    BeforeTheHead,
    InTheBody,
}

impl Running {
    /// One request on a connection of its own. Says whether the body came to its end.
    async fn get(&self, http2: bool, path: &str, leave: Leave) -> bool {
        let io = TokioIo::new(TcpStream::connect(self.address).await.unwrap());
        let request = Request::get(format!("http://test{path}")).header("host", "test");
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let (response, connection) = if http2 {
            let handshake = conn::http2::handshake(TokioExecutor::new(), io);
            let (mut sender, connection) = handshake.await.unwrap();
            let connection = tokio::spawn(async move { drop(connection.await) });
            (tokio::spawn(async move { sender.send_request(request).await }), connection)
        } else {
            let (mut sender, connection) = conn::http1::handshake(io).await.unwrap();
            let connection = tokio::spawn(async move { drop(connection.await) });
            (tokio::spawn(async move { sender.send_request(request).await }), connection)
        };
        if leave == Leave::BeforeTheHead {
            self.wait("http_requests_in_flight{version=\"canary\"} 1").await;
            response.abort();
            connection.abort();
            return false;
        }
        let Ok(Ok(response)) = tokio::time::timeout(LIMIT, response).await.unwrap() else {
            return false;
        };
        let mut body = response.into_body();
        if leave == Leave::InTheBody {
            body.frame().await.unwrap().unwrap();
            connection.abort();
            return false;
        }
        tokio::time::timeout(LIMIT, body.collect()).await.unwrap().is_ok()
    }

    fn page(&self) -> String {
        let families = self.metrics.registry().gather();
        let encoder = cutover::metrics::prometheus::TextEncoder::new();
        encoder.encode_to_string(&families).unwrap()
    }

    async fn wait(&self, line: &str) {
        let started = Instant::now();
        while !self.page().lines().any(|l| l == line) {
            assert!(started.elapsed() < LIMIT, "no {line} in\n{}", self.page());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The only request that was made ended so, and was counted once.
    async fn ended(&self, route: &str, status: &str, reason: Option<&str>) {
        self.wait(&format!(
            "http_requests_total{{method=\"GET\",route=\"{route}\",status=\"{status}\",version=\"canary\"}} 1"
        ))
        .await;
        self.wait("http_requests_in_flight{version=\"canary\"} 0").await;
        let page = self.page();
        let counted: Vec<_> = page
            .lines()
            .filter(|l| l.starts_with("http_requests_") && l.contains("_total{"))
            .filter(|l| !l.ends_with(" 0"))
            .collect();
        assert_eq!(counted.len(), 1 + usize::from(reason.is_some()), "{counted:#?}");
        if let Some(reason) = reason {
            assert!(page.contains(&format!("reason=\"{reason}\",route=\"{route}\"")), "{page}");
        }
    }
}

#[tokio::test]
async fn each_ending_is_counted_once_on_both_protocols() {
    for http2 in [false, true] {
        for (path, leave, whole, status, reason) in [
            ("/fine", Leave::AtTheEnd, true, "200", None),
            ("/panics", Leave::AtTheEnd, false, "500", Some("panic")),
            ("/broken", Leave::AtTheEnd, false, "500", Some("body_error")),
            ("/hangs", Leave::BeforeTheHead, false, "499", Some("dropped")),
            ("/endless", Leave::InTheBody, false, "499", Some("dropped")),
        ] {
            let running = start().await;
            assert_eq!(running.get(http2, path, leave).await, whole, "{path} {http2}");
            running.ended(path, status, reason).await;
        }
    }
}

#[tokio::test]
async fn a_body_that_fills_its_content_length_is_complete() {
    let running = start().await;
    assert!(running.get(false, "/sized", Leave::AtTheEnd).await);
    running.ended("/sized", "200", None).await;
}

#[tokio::test]
async fn a_panic_takes_nobody_else_with_it() {
    let running = start().await;
    running.get(false, "/panics", Leave::AtTheEnd).await;
    assert!(running.get(false, "/fine", Leave::AtTheEnd).await);
    // Nor does it leave anything behind that a drain would wait for.
    running.drain.begin();
    let report = tokio::time::timeout(LIMIT, running.drain.finished()).await.unwrap();
    assert_eq!(report.cut, []);
}

#[tokio::test]
async fn cores_that_count_at_once_lose_nothing() {
    let running = start().await;
    let running = std::sync::Arc::new(running);
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let running = std::sync::Arc::clone(&running);
            tokio::spawn(async move {
                for _ in 0..50 {
                    assert!(running.get(false, "/fine", Leave::AtTheEnd).await);
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    running
        .wait("http_requests_total{method=\"GET\",route=\"/fine\",status=\"200\",version=\"canary\"} 400")
        .await;
    running
        .wait("http_request_duration_seconds_count{method=\"GET\",route=\"/fine\",status=\"200\",version=\"canary\"} 400")
        .await;
    running.wait("http_requests_in_flight{version=\"canary\"} 0").await;
}
