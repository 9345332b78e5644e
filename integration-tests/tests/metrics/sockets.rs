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
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

const LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct Running {
    metrics: Metrics,
    drain: Drain,
    pub(crate) address: SocketAddr,
}

async fn start() -> Running {
    // More chunks than the length allows. The server stops reading by itself.
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
        .route("/sized", get(move || async move { sized() }))
        .route("/panics", get(panics));
    Running::start(app).await
}
impl Running {
    pub(crate) async fn start(app: Router) -> Self {
        let metrics = Metrics::new(&Release::new("test", "canary").unwrap()).unwrap();
        let drain = Drain::new(&Health::new(), DrainOptions::default()).unwrap();
        let app = app.layer(metrics.layer());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = drain.clone();
        tokio::spawn(async move { serving.serve(listener, app).await });
        Self { metrics, drain, address }
    }

    /// Sends one request on a new connection. Returns whether the body was complete.
    async fn get(&self, path: &str) -> bool {
        let io = TokioIo::new(TcpStream::connect(self.address).await.unwrap());
        let request = Request::get(format!("http://test{path}")).header("host", "test");
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let (mut sender, connection) = conn::http1::handshake(io).await.unwrap();
        tokio::spawn(async move { drop(connection.await) });
        let whole = async { sender.send_request(request).await?.into_body().collect().await };
        tokio::time::timeout(LIMIT, whole).await.unwrap().is_ok()
    }

    pub(crate) fn page(&self) -> String {
        let families = self.metrics.registry().gather();
        let encoder = cutover::metrics::prometheus::TextEncoder::new();
        encoder.encode_to_string(&families).unwrap()
    }

    pub(crate) async fn wait(&self, line: &str) {
        let started = Instant::now();
        while !self.page().lines().any(|l| l == line) {
            assert!(started.elapsed() < LIMIT, "no {line} in\n{}", self.page());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Checks that the one request was counted once, with this outcome.
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
async fn a_body_that_fills_its_content_length_is_complete() {
    let running = start().await;
    assert!(running.get("/sized").await);
    running.ended("/sized", "200", None).await;
}

#[tokio::test]
async fn a_panic_ends_only_its_own_request() {
    let running = start().await;
    running.get("/panics").await;
    assert!(running.get("/fine").await);
    // It leaves no request in flight for a drain to wait for.
    running.drain.begin();
    let report = tokio::time::timeout(LIMIT, running.drain.finished()).await.unwrap();
    assert_eq!(report.cut, []);
}

#[tokio::test]
async fn counts_of_several_cores_at_once_are_complete() {
    let running = start().await;
    let running = std::sync::Arc::new(running);
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let running = std::sync::Arc::clone(&running);
            tokio::spawn(async move {
                for _ in 0..50 {
                    assert!(running.get("/fine").await);
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
