use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::listen::Listen;
use super::stage::Stage;
use super::state::State;
use super::{CutPhase, Drain, DrainOptions, HookEnd, serve};
use crate::health::Health;

const SECOND: Duration = Duration::from_secs(1);

fn drain() -> Drain {
    Drain::new(&Health::new(), DrainOptions::default()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_idle_drain_ends_after_propagation() {
    let drain = drain();
    assert!(!drain.draining());
    let began = Instant::now();
    drain.begin();
    let report = drain.finished().await;
    assert_eq!(began.elapsed(), 5 * SECOND);
    assert_eq!(report.waited, 5 * SECOND);
    assert_eq!((report.cut, report.hooks), (vec![], vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_second_begin_does_not_restart_the_clock() {
    let drain = drain();
    let began = Instant::now();
    drain.begin();
    sleep(4 * SECOND).await;
    drain.clone().begin();
    drain.begun().await;
    let report = drain.finished().await;
    assert_eq!(began.elapsed(), 5 * SECOND);
    drain.begin();
    assert_eq!(drain.finished().now_or_never(), Some(report), "the drain does not run again");
}

#[tokio::test(start_paused = true)]
async fn work_that_does_not_end_is_listed_at_the_deadline() {
    let drain = drain();
    let (short, long) = (drain.work("transaction"), drain.work("import"));
    drain.begin();
    sleep(20 * SECOND).await;
    drop(short);
    let report = drain.finished().await;
    assert_eq!(report.waited.as_secs(), 26, "grace less hooks and margin");
    assert_eq!(report.cut.len(), 1);
    assert_eq!(report.cut[0].what, "import");
    assert_eq!(report.cut[0].phase, CutPhase::Work);
    assert_eq!(report.cut[0].age, 26 * SECOND);
    drop(long);
}

#[tokio::test(start_paused = true)]
async fn the_drain_ends_when_the_work_ends() {
    let drain = drain();
    let work = drain.work("transaction");
    drain.begin();
    tokio::spawn(async move {
        sleep(12 * SECOND).await;
        drop(work);
    });
    let report = drain.finished().await;
    assert_eq!((report.waited, report.cut), (12 * SECOND, vec![]));
}

#[tokio::test(start_paused = true)]
async fn hooks_run_after_the_work_with_the_remaining_time() {
    let drain = drain();
    let order = Arc::new(Mutex::new(Vec::new()));
    let work = drain.work("transaction");
    let note = |text: &'static str| order.lock().unwrap().push(text);
    for name in ["done", "slow", "panics", "panics at once"] {
        let order = Arc::clone(&order);
        drain.on_drain(name, move |left| {
            order.lock().unwrap().push("hook");
            assert_eq!(left, 9 * SECOND);
            assert!(name != "panics at once");
            async move {
                match name {
                    "done" => sleep(2 * SECOND).await,
                    "slow" => std::future::pending().await,
                    _ => panic!("boom"),
                }
            }
        });
    }
    let began = Instant::now();
    drain.begin();
    sleep(20 * SECOND).await;
    note("work ended");
    drop(work);
    let report = drain.finished().await;
    assert_eq!(began.elapsed(), 29 * SECOND, "the margin is left");
    assert_eq!(*order.lock().unwrap(), ["work ended", "hook", "hook", "hook", "hook"]);
    let ends: Vec<_> = report.hooks.iter().map(|h| (&*h.name, h.end, h.took)).collect();
    assert_eq!(
        ends,
        [
            ("done", HookEnd::Done, 2 * SECOND),
            ("slow", HookEnd::TimedOut, 9 * SECOND),
            ("panics", HookEnd::Panicked, Duration::ZERO),
            ("panics at once", HookEnd::Panicked, Duration::ZERO),
        ]
    );
}

#[test]
fn every_bad_option_is_refused_with_its_problem() {
    let options =
        DrainOptions { propagation: 27 * SECOND, head_timeout: Duration::ZERO, ..DrainOptions::default() };
    let error = Drain::new(&Health::new(), options).unwrap_err();
    assert_eq!(error.problems.len(), 3, "{error}");
    for word in ["propagation", "head_timeout", "Tokio runtime"] {
        assert!(error.to_string().contains(word), "{error}");
    }
}

/// Fails like a process without free file descriptors, then accepts.
struct Exhausted {
    listener: TcpListener,
    failures: AtomicU32,
}

impl Listen for Exhausted {
    type Stream = TcpStream;
    type Peer = SocketAddr;

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let left = self.failures.load(Ordering::SeqCst);
        if left > 0 {
            self.failures.store(left - 1, Ordering::SeqCst);
            return Err(io::Error::from_raw_os_error(24));
        }
        self.listener.accept().await
    }
}

fn plain(stream: TcpStream) -> std::future::Ready<io::Result<TcpStream>> {
    std::future::ready(Ok(stream))
}

fn state(drain: &Drain) -> Arc<State> {
    Arc::clone(&drain.state)
}

#[tokio::test]
async fn accepting_continues_after_too_many_open_files() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let exhausted = Exhausted { listener, failures: AtomicU32::new(3) };
    let drain = drain();
    let app = Router::new().route("/", get(|| async { "hello" }));
    let started = Instant::now();
    tokio::spawn(serve::public(state(&drain), exhausted, plain, app));
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("hello"), "{answer}");
    assert!(started.elapsed() >= Duration::from_millis(10 + 20 + 40), "no busy loop");
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_always_fails_does_not_delay_the_drain() {
    let exhausted = Exhausted {
        listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        failures: AtomicU32::new(u32::MAX),
    };
    let drain = drain();
    let (ended, end) = oneshot::channel();
    let serving = serve::public(state(&drain), exhausted, plain, Router::new());
    tokio::spawn(async move {
        serving.await;
        let _ = ended.send(());
    });
    sleep(SECOND).await;
    drain.begin();
    end.await.unwrap();
    assert_eq!(drain.finished().await.waited, 5 * SECOND);
}

/// Leaves connections in the kernel's queue until propagation has passed.
struct Late {
    listener: TcpListener,
    state: Arc<State>,
}

impl Listen for Late {
    type Stream = TcpStream;
    type Peer = SocketAddr;

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        if !self.state.stages.is_at(Stage::Closing) {
            std::future::pending::<()>().await;
        }
        self.listener.accept().await
    }
}

#[tokio::test]
async fn connections_in_the_kernels_queue_are_served() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let options = DrainOptions { propagation: Duration::from_millis(50), ..DrainOptions::default() };
    let drain = Drain::new(&Health::new(), options).unwrap();
    let late = Late { listener, state: state(&drain) };
    let app = Router::new().route("/", get(|| async { "hello" }));
    tokio::spawn(serve::public(state(&drain), late, plain, app));
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(TcpStream::connect(address).await.unwrap());
    }
    drain.begin();
    drain.state.stages.reached(Stage::Closing).await;
    for mut stream in streams {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: t\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("hello"), "{answer:?}");
    }
    assert_eq!(drain.finished().await.cut, []);
}
