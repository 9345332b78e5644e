//! Limits on connections, heads and idle time.

use std::time::{Duration, Instant};

use axum::{Router, routing::post};
use bytes::Bytes;
use cutover::drain::DrainOptions;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{LIMIT, hello, options, short, start};

/// Returns when the server has closed the connection.
async fn closed(mut stream: TcpStream) {
    let _ = timeout(LIMIT, stream.read_to_end(&mut Vec::new())).await.unwrap();
}

#[tokio::test]
async fn a_request_head_has_a_time_limit() {
    let head_timeout = Duration::from_secs(2);
    let running = start(DrainOptions { head_timeout, ..options() }, hello()).await;
    let silent = running.raw(b"").await;
    let half_preface = running.raw(b"PRI * HT").await;
    let half_head = running.raw(b"GET / HTTP/1.1\r\nhost: te").await;
    // The second head of a connection counts from its first byte, and bytes do not prolong it.
    let mut idle = running.raw(b"GET / HTTP/1.1\r\nhost: t\r\n\r\n").await;
    let mut half_second_head = running.raw(b"GET / HTTP/1.1\r\nhost: t\r\n\r\n").await;
    for stream in [silent, half_preface, half_head] {
        closed(stream).await;
    }
    let began = Instant::now();
    while half_second_head.write_all(b"GET").await.is_ok() && began.elapsed() < LIMIT {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(began.elapsed() >= head_timeout / 2 && began.elapsed() < LIMIT, "{:?}", began.elapsed());
    running.until_counted("head_timeout", 1.0).await;

    // An idle connection is not a slow head.
    let mut buffer = [0; 1024];
    assert!(idle.read(&mut buffer).await.unwrap() > 0);
    idle.write_all(b"GET / HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    timeout(LIMIT, idle.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.ends_with("hello"), "{answer:?}");
}

#[tokio::test]
async fn a_slow_request_body_is_not_a_slow_head() {
    let head_timeout = Duration::from_secs(1);
    let app = Router::new().route("/", post(|body: Bytes| async move { body.len().to_string() }));
    let running = start(DrainOptions { head_timeout, ..options() }, app).await;
    let mut stream =
        running.raw(b"POST / HTTP/1.1\r\nhost: t\r\nconnection: close\r\ncontent-length: 4\r\n\r\n").await;
    for _ in 0..4 {
        tokio::time::sleep(head_timeout / 2).await;
        stream.write_all(b"a").await.unwrap();
    }
    let mut answer = String::new();
    timeout(LIMIT, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.ends_with('4'), "{answer:?}");
}

#[tokio::test]
async fn an_idle_connection_has_a_time_limit() {
    let impatient = DrainOptions { idle_timeout: Duration::from_millis(200), ..options() };
    let running = start(impatient, hello()).await;
    closed(running.raw(b"GET / HTTP/1.1\r\nhost: t\r\n\r\n").await).await;
    assert!(!running.drain.draining());
}

#[tokio::test]
async fn connections_above_the_limit_wait_for_a_place() {
    let running = start(DrainOptions { max_connections: 2, ..short() }, hello()).await;
    let first = running.raw(b"GET / HTTP/1.1\r\nhost: te").await;
    let _second = running.raw(b"GET / HTTP/1.1\r\nhost: te").await;
    let mut third = running.raw(b"GET / HTTP/1.0\r\n\r\n").await;
    let mut answer = String::new();
    let waiting = timeout(Duration::from_millis(300), third.read_to_string(&mut answer)).await;
    assert!(waiting.is_err(), "served beyond the limit: {answer:?}");
    drop(first);
    timeout(LIMIT, third.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.ends_with("hello"), "{answer:?}");
    // A listener that waits for a place does not delay the drain.
    let _third = running.raw(b"GET / HTTP/1.1\r\nhost: te").await;
    running.drain.begin();
    assert!(running.report().await.waited < short().grace);
}
