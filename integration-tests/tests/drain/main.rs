//! Drains against real sockets.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests fail the test")]

mod doors;
mod hostile;
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

/// Far above everything that a test should take.
const LIMIT: Duration = Duration::from_secs(10);
const PROPAGATION: Duration = Duration::from_millis(400);

fn options() -> DrainOptions {
    DrainOptions {
        grace: Duration::from_millis(2500),
        propagation: PROPAGATION,
        hook_time: Duration::from_millis(300),
        margin: Duration::from_millis(200),
        ..DrainOptions::default()
    }
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
    let running = start(options(), hello()).await;
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
    assert!(began.elapsed() < PROPAGATION, "closed by the header, not by the drain");

    let address = running.address;
    let report = running.report().await;
    assert_eq!(report.cut, []);
    assert!(report.waited >= PROPAGATION);
    let refused = TcpStream::connect(address).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn a_kept_alive_connection_is_told_by_its_next_response() {
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
async fn a_body_in_flight_comes_to_its_end() {
    let (app, chunks) = streaming();
    let running = start(options(), app).await;
    let (mut sender, _driver) = http1(running.address).await;
    let response = sender.send_request(request("/stream")).await.unwrap();

    running.drain.begin();
    // Only the body is waited for.
    running.until_refused().await;
    assert!(!running.serving.is_finished());
    chunks.send("one ").unwrap();
    chunks.send("two").unwrap();
    drop(chunks);
    assert_eq!(text(response).await, "one two");
    assert_eq!(running.report().await.cut, []);
}

#[tokio::test]
async fn what_does_not_end_is_cut_at_the_deadline_and_listed() {
    let (app, _chunks) = streaming();
    let running = start(options(), app).await;
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
    let deadline = Duration::from_millis(2000);
    assert!(report.cut.iter().all(|c| c.age >= deadline));
    assert!(took >= deadline && took < options().grace, "{took:?}");
    for mut stream in [half_head, silent, no_answer] {
        let read = timeout(LIMIT, stream.read(&mut [0; 64])).await.unwrap();
        assert!(!matches!(read, Ok(1..)), "closed without an answer: {read:?}");
    }
    drop(job);
}

#[tokio::test]
async fn a_mute_http2_client_holds_nothing_past_the_deadline() {
    let (app, _chunks) = streaming();
    let running = start(options(), app).await;
    // Preface and empty SETTINGS, then not even the acknowledgement of the server's.
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
    assert!(report.waited < options().grace);
    timeout(LIMIT, hanging).await.unwrap().unwrap().unwrap_err();
}

#[tokio::test]
async fn http2_gets_a_goaway_at_once_and_its_requests_end() {
    let (app, chunks) = streaming();
    let running = start(options(), app).await;
    let (mut sender, driver) = http2(running.address).await;
    let response = sender.send_request(request("http://t/stream")).await.unwrap();

    let began = Instant::now();
    running.drain.begin();
    // The client learns of it while its stream is still open.
    timeout(LIMIT, async {
        while sender.ready().await.is_ok() && began.elapsed() < PROPAGATION {
            if sender.send_request(request("http://t/")).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    assert!(began.elapsed() < PROPAGATION, "no GOAWAY before the listener closed");

    // New connections are accepted meanwhile, and can be used more than once.
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

/// One has its request on the way, the other sends it later than the listener closes.
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
    let post = Request::post("/drain").header("host", "t").body(Empty::new()).unwrap();
    let (get, post) = tokio::join!(first.send_request(request("/drain")), second.send_request(post));
    assert_eq!(get.unwrap().status(), StatusCode::OK);
    let post = post.unwrap();
    assert_eq!(post.status(), StatusCode::OK);
    assert!(!says_close(&post), "the admin listener stays");
    assert!(began.elapsed() >= PROPAGATION);

    // The admin pages are there until the hooks have ended.
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

/// As the documentation of `head_timeout` says, which is why its default is that long.
#[tokio::test]
async fn the_head_timeout_ends_half_heads_and_idle_and_silent_connections() {
    let impatient = DrainOptions { head_timeout: Duration::from_millis(200), ..options() };
    let running = start(impatient, hello()).await;
    let half_head = running.raw(b"GET / HTTP/1.1\r\nhost: te").await;
    let idle = running.raw(b"GET / HTTP/1.1\r\nhost: t\r\n\r\n").await;
    // hyper's own limit begins when it knows which version it is.
    let (silent, half_preface) = (running.raw(b"").await, running.raw(b"PRI * HT").await);
    for mut stream in [half_head, idle, silent, half_preface] {
        let mut answer = Vec::new();
        let read = timeout(LIMIT, stream.read_to_end(&mut answer)).await.unwrap();
        read.unwrap();
    }
    assert!(!running.drain.draining());
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

const CHILD: &str = "CUTOVER_TEST_SIGNAL_CHILD";

/// This test once more in a process of its own, as far as a line that says `serving` and an address: a
/// signal would begin the drains of all tests in this process.
fn child(name: &str) -> (std::process::Child, io::BufReader<std::process::ChildStdout>, SocketAddr) {
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, "1")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = io::BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    let address = loop {
        line.clear();
        assert_ne!(io::BufRead::read_line(&mut output, &mut line).unwrap(), 0);
        if let Some((_, address)) = line.split_once("serving ") {
            break address.trim().parse().unwrap();
        }
    };
    (child, output, address)
}

fn signalled_child() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let running = start(options(), hello()).await;
        text(http1(running.address).await.0.send_request(request("/")).await.unwrap()).await;
        let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = admin.local_addr().unwrap();
        let (drain, pages) = (running.drain.clone(), running.drain.router());
        let serving = tokio::spawn(async move { drain.serve_admin(admin, pages).await });
        println!("\nserving {address}");
        let report = running.report().await;
        println!("drained, cut {}, waited {}", report.cut.len(), report.waited.as_millis());
        serving.await.unwrap().unwrap();
    });
}

fn terminate(child: &std::process::Child) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
}

/// Whatever came how often: one drain, of its usual length, and the process ends by itself.
fn drained_once(mut child: std::process::Child, mut output: impl Read) {
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!(rest.matches("drained, cut 0").count(), 1, "{rest}");
    let waited = rest.split_once("waited ").unwrap().1.lines().next().unwrap();
    let waited = Duration::from_millis(waited.parse().unwrap());
    assert!(waited >= PROPAGATION && waited < options().grace, "{waited:?}");
    assert!(child.wait().unwrap().success());
}

#[test]
fn sigterm_begins_the_drain_and_does_not_end_the_process() {
    if std::env::var_os(CHILD).is_some() {
        return signalled_child();
    }
    let (child, output, _) = child("sigterm_begins_the_drain_and_does_not_end_the_process");
    terminate(&child);
    drained_once(child, output);
}

#[test]
fn a_second_sigterm_changes_nothing() {
    if std::env::var_os(CHILD).is_some() {
        return signalled_child();
    }
    let (child, output, _) = child("a_second_sigterm_changes_nothing");
    for _ in 0..3 {
        terminate(&child);
        std::thread::sleep(PROPAGATION / 8);
    }
    drained_once(child, output);
}

/// The kubelet may run the hook twice, and signals when its patience with the hook ends.
#[test]
fn sigterm_during_two_prestop_hooks_is_the_same_drain() {
    if std::env::var_os(CHILD).is_some() {
        return signalled_child();
    }
    let (child, output, admin) = child("sigterm_during_two_prestop_hooks_is_the_same_drain");
    let hook = || {
        let mut stream = std::net::TcpStream::connect(admin).unwrap();
        stream.write_all(b"POST /drain HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n").unwrap();
        stream
    };
    let mut hooks = [hook(), hook()];
    terminate(&child);
    for hook in &mut hooks {
        let mut answer = String::new();
        hook.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
    }
    drained_once(child, output);
}
