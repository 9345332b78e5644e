//! Responses and requests that do not end by themselves: feeds, upgrades, slow bodies.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use axum::{
    Router,
    body::Body,
    response::IntoResponse,
    routing::{any, get, post},
};
use bytes::Bytes;
use cutover::drain::{CutPhase, Drain, DrainOptions, LongStream};
use futures_util::stream;
use http_body_util::{BodyExt, Empty};
use hyper::ext::Protocol;
use hyper::{Request, Response, StatusCode, Version, header};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
    time::timeout,
};

use super::{LIMIT, PROPAGATION, http1, http2, options, request, short, start, text};

/// One chunk, and then nothing.
fn endless() -> Body {
    let first = stream::iter([Ok::<_, io::Error>(Bytes::from_static(b"data: 1\n\n"))]);
    Body::from_stream(futures_util::StreamExt::chain(first, stream::pending()))
}

fn feeds() -> Router {
    let events = || async { ([(header::CONTENT_TYPE, "text/event-stream")], endless()) };
    let watch = || async {
        let mut response = ([(header::CONTENT_TYPE, "application/grpc")], endless()).into_response();
        response.extensions_mut().insert(LongStream);
        response
    };
    let lines = || async { ([(header::CONTENT_TYPE, "application/X-NDJSON; charset=utf-8")], endless()) };
    let unmarked = || async { endless().into_response() };
    Router::new()
        .route("/events", get(events))
        .route("/watch", get(watch))
        .route("/lines", get(lines))
        .route("/unmarked", get(unmarked))
}

#[tokio::test]
async fn feeds_end_when_their_clients_find_another_instance() {
    let long_types = ["text/event-stream", "application/x-ndjson"].map(str::to_owned).to_vec();
    let running = start(DrainOptions { long_types, ..options() }, feeds()).await;
    let (mut one, _driver) = http1(running.address).await;
    let (mut two, _driver) = http2(running.address).await;
    let over_http1 = one.send_request(request("/events")).await.unwrap();
    let over_http2 = two.send_request(request("http://t/events")).await.unwrap();
    let lines = two.send_request(request("http://t/lines")).await.unwrap();
    let watch = two.send_request(request("http://t/watch")).await.unwrap();

    let began = Instant::now();
    running.drain.begin();
    for feed in [over_http1, over_http2, lines] {
        assert_eq!(text(feed).await, "data: 1\n\n");
        assert!(began.elapsed() >= PROPAGATION, "not earlier, or the client would return to this instance");
    }
    let watch = timeout(LIMIT, watch.into_body().collect()).await.unwrap().unwrap();
    let trailers = watch.trailers().unwrap();
    assert_eq!(trailers["grpc-status"], "14", "a gRPC client retries on UNAVAILABLE");

    let report = running.report().await;
    assert_eq!(report.cut, []);
    assert!(report.waited < options().grace / 2, "{:?}", report.waited);
}

#[tokio::test]
async fn an_unmarked_stream_is_waited_for_and_cut() {
    let running = start(short(), feeds()).await;
    let (mut one, _driver) = http1(running.address).await;
    let (mut two, _driver) = http2(running.address).await;
    let over_http1 = one.send_request(request("/unmarked")).await.unwrap();
    let over_http2 = two.send_request(request("http://t/unmarked")).await.unwrap();
    running.drain.begin();
    for stream in [over_http1, over_http2] {
        let ended = timeout(LIMIT, stream.into_body().collect()).await.unwrap();
        assert!(ended.is_err(), "a client must notice that the body is incomplete");
    }
    let report = running.report().await;
    let cut: Vec<_> = report.cut.iter().map(|cut| (cut.what.as_str(), cut.phase)).collect();
    assert_eq!(cut, [("GET /unmarked", CutPhase::Body); 2]);
}

/// Echoes like the handler of a WebSocket. With `leaves` it ends when the drain begins.
fn echo(drain: Drain, leaves: bool, cut: Arc<AtomicBool>) -> Router {
    let upgrade = move |mut request: Request<Body>| {
        let (drain, cut) = (drain.clone(), Arc::clone(&cut));
        let is_http2 = request.version() == Version::HTTP_2;
        async move {
            tokio::spawn(async move {
                let mut bytes = TokioIo::new(hyper::upgrade::on(&mut request).await.unwrap());
                loop {
                    let mut buffer = [0; 64];
                    let read = tokio::select! {
                        read = bytes.read(&mut buffer) => read,
                        () = drain.begun(), if leaves => {
                            bytes.write_all(b"bye").await.unwrap();
                            return;
                        }
                    };
                    match read {
                        Ok(length @ 1..) => bytes.write_all(&buffer[..length]).await.unwrap(),
                        other => return cut.store(other.is_err(), Ordering::SeqCst),
                    }
                }
            });
            if is_http2 {
                return Response::new(Body::empty());
            }
            let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
            let response = response.header("connection", "upgrade").header("upgrade", "echo");
            response.body(Body::empty()).unwrap()
        }
    };
    Router::new().route("/socket", any(upgrade))
}

async fn upgraded(running: &super::Running) -> TcpStream {
    let mut stream =
        running.raw(b"GET /socket HTTP/1.1\r\nhost: t\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").await;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    stream.write_all(b"ping").await.unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"ping");
    stream
}

#[tokio::test]
async fn an_upgraded_connection_can_end_by_itself() {
    let (tell, told) = oneshot::channel();
    let running = start_with_drain(options(), |drain| {
        let _ = tell.send(());
        echo(drain, true, Arc::default())
    })
    .await;
    told.await.unwrap();
    let mut socket = upgraded(&running).await;
    running.drain.begin();
    let mut rest = String::new();
    timeout(LIMIT, socket.read_to_string(&mut rest)).await.unwrap().unwrap();
    assert_eq!(rest, "bye");
    assert_eq!(running.report().await.cut, []);
}

#[tokio::test]
async fn an_upgraded_connection_is_cut_at_the_deadline() {
    let cut = Arc::new(AtomicBool::new(false));
    let running = start_with_drain(short(), |drain| echo(drain, false, Arc::clone(&cut))).await;
    let mut socket = upgraded(&running).await;
    running.drain.begin();
    let report = running.report().await;
    assert_eq!(report.cut.len(), 1, "{:?}", report.cut);
    assert_eq!((report.cut[0].what.as_str(), report.cut[0].phase), ("GET /socket", CutPhase::Upgraded));
    let read = timeout(LIMIT, socket.read(&mut [0; 8])).await.unwrap();
    assert!(!matches!(read, Ok(1..)), "{read:?}");
    assert!(cut.load(Ordering::SeqCst), "the handler's read must fail");
}

/// RFC 8441: the request is a CONNECT with the protocol beside its path.
#[tokio::test]
async fn a_websocket_over_http2_works_and_is_cut_at_the_deadline() {
    let cut = Arc::<AtomicBool>::default();
    let running = start_with_drain(short(), |drain| echo(drain, false, Arc::clone(&cut))).await;
    let (mut sender, _driver) = http2(running.address).await;
    // The server's settings, which allow it, come before the first answer.
    let _ = sender.send_request(request("http://t/nothing")).await.unwrap();
    let connect = Request::connect("http://t/socket").extension(Protocol::from_static("websocket"));
    let response = sender.send_request(connect.body(Empty::new()).unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let mut socket = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    let mut answer = [0; 5];
    socket.write_all(b"hello").await.unwrap();
    timeout(LIMIT, socket.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"hello");
    running.drain.begin();
    let ended = timeout(LIMIT, socket.read_exact(&mut answer)).await.unwrap();
    assert!(ended.is_err());
    let report = running.report().await;
    assert!(report.waited > PROPAGATION, "it is waited for: {:?}", report.waited);
}

async fn start_with_drain(options: DrainOptions, app: impl FnOnce(Drain) -> Router) -> super::Running {
    let health = cutover::health::Health::new();
    let drain = Drain::new(&health, options).unwrap();
    let app = app(drain.clone());
    super::serve(health, drain, app).await
}

#[tokio::test]
async fn a_slow_request_body_is_cut_only_at_the_deadline() {
    let app = Router::new().route("/upload", post(|body: Bytes| async move { body.len().to_string() }));
    let running = start(short(), app).await;
    let head = b"POST /upload HTTP/1.1\r\nhost: t\r\ncontent-length: 4\r\n\r\nab";
    let mut ends = running.raw(head).await;
    let mut never = running.raw(head).await;
    running.drain.begin();
    // Past propagation, byte by byte.
    running.until_refused().await;
    for byte in b"cd" {
        ends.write_all(&[*byte]).await.unwrap();
        ends.flush().await.unwrap();
    }
    let mut answer = String::new();
    timeout(LIMIT, ends.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with('4'), "{answer:?}");
    let report = running.report().await;
    let cut: Vec<_> = report.cut.iter().map(|cut| (cut.what.as_str(), cut.phase)).collect();
    assert_eq!(cut, [("POST /upload", CutPhase::Head)]);
    let read = timeout(LIMIT, never.read(&mut [0; 8])).await.unwrap();
    assert!(!matches!(read, Ok(1..)), "{read:?}");
}
