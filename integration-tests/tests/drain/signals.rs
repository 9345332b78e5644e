//! Signals and preStop hooks, each in a process of its own.

use std::{
    future::pending,
    io::{self, Read, Write},
    net::SocketAddr,
    time::{Duration, Instant},
};

use cutover::drain::DrainOptions;
use tokio::{io::AsyncWriteExt, net::TcpListener};

use super::{LIMIT, PROPAGATION, http1, options, request, start, streaming, text};

const CHILD: &str = "CUTOVER_TEST_SIGNAL_CHILD";
/// The value of [`CHILD`] for a process with a request and a hook that do not end.
const HANGS: &str = "hangs";

/// Runs this test in a process of its own until it prints `serving` and an address: a signal would begin the drains of
/// all tests in this process.
fn child(
    name: &str,
    kind: &str,
) -> (std::process::Child, io::BufReader<std::process::ChildStdout>, SocketAddr) {
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, kind)
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
        let (app, _chunks) = streaming();
        let hangs = std::env::var(CHILD).unwrap() == HANGS;
        let options = match hangs {
            true => DrainOptions {
                grace: Duration::from_secs(120),
                hook_time: Duration::from_secs(60),
                ..options()
            },
            false => options(),
        };
        let running = start(options, app).await;
        text(http1(running.address).await.0.send_request(request("/")).await.unwrap()).await;
        let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = admin.local_addr().unwrap();
        let (drain, pages) = (running.drain.clone(), running.drain.router());
        let serving = tokio::spawn(async move { drain.serve_admin(admin, pages).await });
        let mut hanging = running.raw(b"").await;
        if hangs {
            hanging.write_all(b"GET /slow HTTP/1.1\r\nhost: t\r\n\r\n").await.unwrap();
            running.drain.on_drain("slow", |_| pending());
        } else {
            drop(hanging);
        }
        println!("\nserving {address}");
        let report = running.report().await;
        println!("drained, cut {}, waited {}", report.cut.len(), report.waited.as_millis());
        println!("hooks {:?}", report.hooks.iter().map(|hook| hook.end).collect::<Vec<_>>());
        serving.await.unwrap().unwrap();
    });
}

fn terminate(child: &std::process::Child) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
}

/// What the process printed until it ended by itself with status 0.
fn rest(mut child: std::process::Child, mut output: impl Read) -> String {
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert!(child.wait().unwrap().success(), "{rest}");
    rest
}

/// One drain of the usual length.
fn drained_once(child: std::process::Child, output: impl Read) {
    let rest = rest(child, output);
    assert_eq!(rest.matches("drained, cut 0").count(), 1, "{rest}");
    let waited = rest.split_once("waited ").unwrap().1.lines().next().unwrap();
    let waited = Duration::from_millis(waited.parse().unwrap());
    assert!(waited >= PROPAGATION && waited < options().grace, "{waited:?}");
}

#[test]
fn sigterm_begins_the_drain_and_does_not_kill_the_process() {
    if std::env::var_os(CHILD).is_some() {
        return signalled_child();
    }
    let (child, output, _) = child("signals::sigterm_begins_the_drain_and_does_not_kill_the_process", "1");
    terminate(&child);
    drained_once(child, output);
}

/// With one signal this drain would take 118 s: a request and a hook do not end.
#[test]
fn further_signals_end_the_drain_at_once_with_a_report() {
    if std::env::var_os(CHILD).is_some() {
        return signalled_child();
    }
    let (mut child, output, _) = child("signals::further_signals_end_the_drain_at_once_with_a_report", HANGS);
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        terminate(&child);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(began.elapsed() < LIMIT, "{:?}", began.elapsed());
    let rest = rest(child, output);
    assert!(rest.contains("drained, cut 1") && rest.contains("hooks [TimedOut]"), "{rest}");
}

fn post_drain(admin: SocketAddr) -> std::net::TcpStream {
    let mut stream = std::net::TcpStream::connect(admin).unwrap();
    stream.write_all(b"POST /drain HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n").unwrap();
    stream
}

/// The kubelet may run the hook twice, and signals the process when the hook takes too long.
#[test]
fn sigterm_during_two_prestop_hooks_joins_their_drain() {
    if std::env::var_os(CHILD).is_some() {
        return signalled_child();
    }
    let (child, output, admin) = child("signals::sigterm_during_two_prestop_hooks_joins_their_drain", "1");
    let mut hooks = [post_drain(admin), post_drain(admin)];
    terminate(&child);
    for hook in &mut hooks {
        let mut answer = String::new();
        hook.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
    }
    drained_once(child, output);
}
