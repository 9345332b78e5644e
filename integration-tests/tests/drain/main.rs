//! Drains against real sockets.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests fail the test")]

mod endpoint;
mod hostile;
mod limits;
mod listeners;
mod signals;
mod streams;

use std::{
    convert::Infallible,
    future::pending,
    io::{self, Read, Write},
    net::SocketAddr,
    time::{Duration, Instant},
};

use axum::{Router, body::Body, extract::ConnectInfo, routing::get};
use bytes::Bytes;
use cutover::{
    drain::{App, CutPhase, Drain, DrainOptions, DrainReport, HookEnd},
    health::Health,
};
use cutover_testkit::wait_until;
use futures_util::stream;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, Response, StatusCode, body::Incoming, client::conn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};

/// Far above the time that any test should take.
const LIMIT: Duration = Duration::from_secs(60);
const PROPAGATION: Duration = Duration::from_millis(400);
/// The deadline of [`short`].
const DEADLINE: Duration = Duration::from_secs(4);

/// For drains that end before their deadline, which a busy machine does not reach.
fn options() -> DrainOptions {
    DrainOptions {
        grace: Duration::from_secs(40),
        propagation: PROPAGATION,
        hook_time: Duration::from_secs(10),
        margin: Duration::from_secs(2),
        ..DrainOptions::default()
    }
}

/// For drains that reach their deadline.
fn short() -> DrainOptions {
    let (hook_time, margin) = (Duration::from_secs(3), Duration::from_secs(3));
    DrainOptions { grace: DEADLINE + hook_time + margin, hook_time, margin, ..options() }
}

/// For what happens while new connections are still accepted.
fn slowly() -> DrainOptions {
    DrainOptions { propagation: Duration::from_secs(6), ..options() }
}

struct Running {
    health: Health,
    drain: Drain,
    address: SocketAddr,
    serving: JoinHandle<io::Result<DrainReport>>,
}

async fn start(options: DrainOptions, app: impl App) -> Running {
    let health = Health::new();
    let drain = Drain::new(&health, options).unwrap();
    serve(health, drain, app).await
}

async fn serve(health: Health, drain: Drain, app: impl App) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn({
        let drain = drain.clone();
        async move { drain.serve(listener, app).await }
    });
    Running { health, drain, address, serving }
}

impl Running {
    async fn report(self) -> DrainReport {
        timeout(LIMIT, self.serving).await.unwrap().unwrap().unwrap()
    }

    /// Refused connections show that the listener is gone.
    async fn until_refused(&self) {
        while TcpStream::connect(self.address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// How much the server itself refused for this reason.
    fn refused(&self, reason: &str) -> f64 {
        let registry = cutover::metrics::prometheus::Registry::new();
        self.drain.register(&registry).unwrap();
        let families = registry.gather();
        let refused = families.iter().find(|family| family.name() == "cutover_http_refused_total").unwrap();
        let of_reason =
            |metric: &&cutover::metrics::prometheus::proto::Metric| metric.get_label()[0].value() == reason;
        refused.get_metric().iter().find(of_reason).unwrap().get_counter().get_value()
    }

    /// A refusal is counted when its task ends, which the client may see earlier.
    async fn until_counted(&self, reason: &str, least: f64) {
        let is_counted = async || Ok::<_, Infallible>(self.refused(reason) >= least);
        wait_until("the count of what was refused", LIMIT, is_counted).await.unwrap();
    }

    async fn raw(&self, text: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(text).await.unwrap();
        stream
    }
}

fn hello() -> Router {
    Router::new().route("/", get(|| async { "hello" }))
}

type Http1 = conn::http1::SendRequest<Empty<Bytes>>;
type Http2 = conn::http2::SendRequest<Empty<Bytes>>;

async fn http1(address: SocketAddr) -> (Http1, JoinHandle<hyper::Result<()>>) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    (sender, tokio::spawn(connection))
}

async fn http2(address: SocketAddr) -> (Http2, JoinHandle<hyper::Result<()>>) {
    let stream = TcpStream::connect(address).await.unwrap();
    let handshake = conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (sender, connection) = handshake.await.unwrap();
    (sender, tokio::spawn(connection))
}

fn request(path: &str) -> Request<Empty<Bytes>> {
    let request = Request::get(path).header("host", "test");
    request.body(Empty::new()).unwrap()
}

async fn text(response: Response<Incoming>) -> String {
    let bytes = timeout(LIMIT, response.into_body().collect()).await.unwrap().unwrap();
    String::from_utf8(bytes.to_bytes().to_vec()).unwrap()
}

fn says_close(response: &Response<Incoming>) -> bool {
    response.headers().get("connection").is_some_and(|v| v == "close")
}

/// A route `/stream` that sends what the test gives it, and `/slow` that never answers.
fn streaming() -> (Router, mpsc::UnboundedSender<&'static str>) {
    let (sender, receiver) = mpsc::unbounded_channel::<&'static str>();
    let receiver = std::sync::Arc::new(tokio::sync::Mutex::new(receiver));
    let body = move || {
        let receiver = receiver.clone();
        async move {
            Body::from_stream(stream::unfold(receiver, |receiver| async {
                let chunk = receiver.lock().await.recv().await?;
                Some((Ok::<_, Infallible>(chunk), receiver))
            }))
        }
    };
    let app = hello().route("/stream", get(body)).route("/slow", get(pending::<&'static str>));
    (app, sender)
}

#[tokio::test]
async fn connections_are_accepted_until_propagation_has_passed() {
    let running = start(slowly(), hello()).await;
    let (mut before, _driver) = http1(running.address).await;
    let response = before.send_request(request("/")).await.unwrap();
    assert!(!says_close(&response), "no drain, no close");
    assert_eq!(text(response).await, "hello");

    let began = Instant::now();
    running.drain.begin();
    assert!(running.drain.draining());
    assert!(!running.health.is_ready(), "readiness goes down at once");

    let (mut after, driver) = http1(running.address).await;
    let response = after.send_request(request("/")).await.unwrap();
    assert!(says_close(&response));
    assert_eq!(text(response).await, "hello");
    timeout(LIMIT, driver).await.unwrap().unwrap().unwrap();
    assert!(began.elapsed() < slowly().propagation, "closed because of the header, not by the drain");

    let address = running.address;
    let report = running.report().await;
    assert_eq!(report.cut, []);
    assert!(report.waited >= slowly().propagation);
    let refused = TcpStream::connect(address).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn the_next_response_closes_a_kept_alive_connection() {
    let running = start(options(), hello()).await;
    let (mut sender, driver) = http1(running.address).await;
    text(sender.send_request(request("/")).await.unwrap()).await;
    running.drain.begin();

    let response = sender.send_request(request("/")).await.unwrap();
    assert!(says_close(&response));
    text(response).await;
    timeout(LIMIT, driver).await.unwrap().unwrap().unwrap();
    assert_eq!(running.report().await.cut, []);
}

#[tokio::test]
async fn an_idle_connection_is_closed_only_after_propagation() {
    let running = start(options(), hello()).await;
    let (mut sender, driver) = http1(running.address).await;
    text(sender.send_request(request("/")).await.unwrap()).await;

    let began = Instant::now();
    running.drain.begin();
    timeout(LIMIT, driver).await.unwrap().unwrap().unwrap();
    assert!(began.elapsed() >= PROPAGATION);
    let report = running.report().await;
    assert_eq!(report.cut, []);
    assert!(report.waited < options().grace / 2, "{:?}", report.waited);
}

#[tokio::test]
async fn a_body_in_flight_is_sent_to_its_end() {
    let (app, chunks) = streaming();
    let running = start(options(), app).await;
    let (mut sender, _driver) = http1(running.address).await;
    let response = sender.send_request(request("/stream")).await.unwrap();

    running.drain.begin();
    // The drain waits for nothing but the body.
    running.until_refused().await;
    assert!(!running.serving.is_finished());
    chunks.send("one ").unwrap();
    chunks.send("two").unwrap();
    drop(chunks);
    assert_eq!(text(response).await, "one two");
    assert_eq!(running.report().await.cut, []);
}

#[tokio::test]
async fn what_has_not_ended_at_the_deadline_is_cut_and_listed() {
    let (app, _chunks) = streaming();
    let running = start(short(), app).await;
    let half_head = running.raw(b"GET / HTTP/1.1\r\nhost: te").await;
    let half_head_peer = half_head.local_addr().unwrap().to_string();
    let silent = running.raw(b"").await;
    let no_answer = running.raw(b"GET /slow?token=x HTTP/1.1\r\nhost: t\r\n\r\n").await;
    let mut half_body = running.raw(b"GET /stream HTTP/1.1\r\nhost: t\r\n\r\n").await;
    half_body.read_u8().await.unwrap();
    let job = running.drain.work("nightly job");

    let began = Instant::now();
    running.drain.begin();
    let report = running.report().await;
    let took = began.elapsed();

    let mut cut: Vec<_> = report.cut.iter().map(|c| (c.what.as_str(), c.phase)).collect();
    cut.sort_by_key(|(what, _)| *what);
    assert_eq!(
        cut,
        [
            (half_head_peer.as_str(), CutPhase::Connection),
            ("GET /slow", CutPhase::Head),
            ("GET /stream", CutPhase::Body),
            ("nightly job", CutPhase::Work),
        ]
    );
    assert!(report.cut.iter().all(|c| c.age >= report.cut[3].age));
    assert!(report.cut.iter().all(|c| c.age >= DEADLINE));
    assert!(took >= DEADLINE && took < short().grace, "{took:?}");
    for mut stream in [half_head, silent, no_answer] {
        let read = timeout(LIMIT, stream.read(&mut [0; 64])).await.unwrap();
        assert!(!matches!(read, Ok(1..)), "closed without an answer: {read:?}");
    }
    drop(job);
}

#[tokio::test]
async fn a_silent_http2_client_is_cut_at_the_deadline() {
    let (app, _chunks) = streaming();
    let running = start(short(), app).await;
    // A preface and empty SETTINGS, but no acknowledgement of the server's settings.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let mut mute = running.raw(preface).await;
    mute.read_u8().await.unwrap();
    let (mut sender, _driver) = http2(running.address).await;
    let hanging = tokio::spawn(sender.send_request(request("http://t/slow")));
    text(sender.send_request(request("http://t/")).await.unwrap()).await;

    running.drain.begin();
    let report = running.report().await;
    let mut phases: Vec<_> = report.cut.iter().map(|c| c.phase).collect();
    phases.sort_by_key(|phase| phase.to_string());
    assert_eq!(phases, [CutPhase::Connection, CutPhase::Head]);
    assert!(report.waited < short().grace);
    timeout(LIMIT, hanging).await.unwrap().unwrap().unwrap_err();
}

#[tokio::test]
async fn http2_gets_a_goaway_at_once_and_its_streams_end() {
    let (app, chunks) = streaming();
    let running = start(slowly(), app).await;
    let (mut sender, driver) = http2(running.address).await;
    let response = sender.send_request(request("http://t/stream")).await.unwrap();

    let began = Instant::now();
    running.drain.begin();
    // The client gets it while its stream is still open.
    timeout(LIMIT, async {
        while sender.ready().await.is_ok() && began.elapsed() < slowly().propagation {
            if sender.send_request(request("http://t/")).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    assert!(began.elapsed() < slowly().propagation, "no GOAWAY before the listener closed");

    // New connections are accepted meanwhile, and serve more than one request.
    let (mut late, _late_driver) = http2(running.address).await;
    for _ in 0..2 {
        let response = late.send_request(request("http://t/")).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
    }
    chunks.send("end").unwrap();
    drop(chunks);
    assert_eq!(text(response).await, "end");
    timeout(LIMIT, driver).await.unwrap().unwrap().unwrap();
    assert_eq!(running.report().await.cut, []);
}

/// One has sent its request; the other sends it after the listener has closed.
#[tokio::test]
async fn connections_made_at_the_last_moment_are_served() {
    let now = DrainOptions { propagation: Duration::ZERO, ..options() };
    let running = start(now, hello()).await;
    text(http1(running.address).await.0.send_request(request("/")).await.unwrap()).await;

    running.drain.begin();
    let mut prompt = std::net::TcpStream::connect(running.address).unwrap();
    prompt.write_all(b"GET / HTTP/1.1\r\nhost: t\r\n\r\n").unwrap();
    let mut late = std::net::TcpStream::connect(running.address).unwrap();
    let answers = tokio::task::spawn_blocking(move || {
        let mut answers = [String::new(), String::new()];
        prompt.read_to_string(&mut answers[0])?;
        late.write_all(b"GET / HTTP/1.1\r\nhost: t\r\n\r\n")?;
        late.read_to_string(&mut answers[1])?;
        io::Result::Ok(answers)
    });
    for answer in timeout(LIMIT, answers).await.unwrap().unwrap().unwrap() {
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
        assert!(answer.to_lowercase().contains("connection: close"), "{answer:?}");
    }
    assert_eq!(running.report().await.cut, []);
}

#[tokio::test]
async fn every_caller_of_drain_joins_the_same_one() {
    let running = start(options(), hello()).await;
    let admin_listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let admin_address = admin_listener.local_addr().unwrap();
    let admin = running.health.router().merge(running.drain.router());
    let drain = running.drain.clone();
    let serving = tokio::spawn(async move { drain.serve_admin(admin_listener, admin).await });
    let (hook_started, mut hook_runs) = mpsc::channel(1);
    let (let_go, mut may_end) = mpsc::channel::<()>(1);
    running.drain.on_drain("slow", |left| async move {
        hook_started.send(left).await.unwrap();
        may_end.recv().await;
    });

    let began = Instant::now();
    let (mut first, _a) = http1(admin_address).await;
    let (mut second, _b) = http1(admin_address).await;
    let post = || Request::post("/drain").header("host", "t").body(Empty::new()).unwrap();
    let (one, two) = tokio::join!(first.send_request(post()), second.send_request(post()));
    for response in [one.unwrap(), two.unwrap()] {
        assert_eq!(response.status(), StatusCode::OK);
        assert!(!says_close(&response), "the admin listener stays open");
    }
    assert!(began.elapsed() >= PROPAGATION);

    // The admin pages are served until the hooks have ended.
    hook_runs.recv().await.unwrap();
    running.drain.begin();
    let (mut probe, _c) = http1(admin_address).await;
    let unready = probe.send_request(request("/readyz")).await.unwrap();
    assert_eq!(unready.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(text(unready).await, "not ready\nfail drain: draining\n");
    let_go.send(()).await.unwrap();

    let report = running.report().await;
    assert_eq!(report.hooks.len(), 1);
    assert_eq!(report.hooks[0].end, HookEnd::Done);
    timeout(LIMIT, serving).await.unwrap().unwrap().unwrap();
    assert!(TcpStream::connect(admin_address).await.is_err());
}

#[tokio::test]
async fn handlers_know_the_peer() {
    let peer = |ConnectInfo(peer): ConnectInfo<SocketAddr>| async move { peer.to_string() };
    let running = start(options(), Router::new().route("/", get(peer))).await;
    let mut stream = running.raw(b"GET / HTTP/1.0\r\n\r\n").await;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with(&stream.local_addr().unwrap().to_string()), "{answer}");
}
