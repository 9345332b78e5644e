//! No request of a client adds memory or series.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    sync::Arc,
};

use axum::{
    Router,
    body::Body,
    http::{HeaderValue, Method, Request, Response, Uri, header::CONTENT_TYPE},
    routing::{any, get},
};
use cutover::{metrics::Metrics, release::Release};
use futures_util::FutureExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tower::service_fn;
use tower_layer::Layer;
use tower_service::Service;

use super::sockets::Running;

fn metrics() -> Metrics {
    let metrics = Metrics::new(&Release::new("kit", "canary").unwrap()).unwrap();
    metrics.declare(&Method::POST, "/kit.Endings/Fine");
    metrics
}

fn series(metrics: &Metrics) -> usize {
    metrics.registry().gather().iter().map(|family| family.get_metric().len()).sum()
}

/// A thousand requests, each with its own path, method and headers.
fn thousand<S>(service: &mut S, from: usize)
where
    S: Service<Request<Body>, Error = Infallible>,
{
    for number in from..from + 1_000 {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = Uri::try_from(format!("/{number}/{}?{number}", number * 7)).unwrap();
        *request.method_mut() = Method::from_bytes(format!("M{number}").as_bytes()).unwrap();
        let headers = request.headers_mut();
        // Half of them are calls of undeclared gRPC methods.
        if number % 2 == 0 {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        }
        headers.insert(
            "traceparent",
            HeaderValue::try_from(format!("00-{number:032x}-{number:016x}-01")).unwrap(),
        );
        drop(service.call(request).now_or_never());
    }
}

#[test]
fn a_million_paths_add_no_memory_and_no_series() {
    let metrics = metrics();
    let answer = |_: Request<Body>| -> Ready<Result<Response<Body>, Infallible>> {
        ready(Ok(Response::new(Body::empty())))
    };
    let mut service = metrics.layer().layer(service_fn(answer));
    thousand(&mut service, 1);
    let before = series(&metrics);
    let left = allocation_counter::measure(|| {
        for thousands in 1..1_000 {
            thousand(&mut service, thousands * 1_000);
        }
    });
    assert_eq!(series(&metrics), before);
    assert_eq!((left.count_current, left.bytes_current), (0, 0));
}

/// The same through a router. Its own memory per request is not counted.
#[test]
fn only_the_routes_of_the_router_become_series() {
    let metrics = metrics();
    let all = Router::new().route("/{a}/{b}", any(|| async {}));
    for app in [all, Router::new()] {
        let mut app: Router = app.layer(metrics.layer());
        thousand(&mut app, 1);
        let before = series(&metrics);
        for thousands in 1..5 {
            thousand(&mut app, thousands * 1_000);
        }
        assert_eq!(series(&metrics), before);
    }
}

/// Sends the bytes on a new connection and reads the response to its end.
async fn raw(running: &Running, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    // The server may refuse before it has read everything.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn bytes_that_are_no_request_are_not_counted() {
    let running = Running::start(Router::new().route("/", get(|| async {}))).await;
    let many: String = (0..5_000).map(|n| format!("x-{n}: {n}\r\n")).collect();
    let long = "x".repeat(2 << 20);
    for (bytes, refused) in [
        (format!("GET / HTTP/1.1\r\nhost: t\r\n{many}\r\n"), "431"),
        (format!("GET / HTTP/1.1\r\nhost: t\r\nx: {long}\r\n\r\n"), "431"),
        (format!("GET /{long} HTTP/1.1\r\nhost: t\r\n\r\n"), "431"),
        ("GET / HTTP/1.1\r\nhost: t\r\nx y: z\r\n\r\n".to_owned(), "400"),
        ("GET / HTTP/1.1\r\nhost: t\r\nx: \0\r\n\r\n".to_owned(), "400"),
        ("G(T / HTTP/1.1\r\nhost: t\r\n\r\n".to_owned(), "400"),
        ("\r\n\0\u{1}\r\n\r\n".to_owned(), "400"),
    ] {
        let answer = raw(&running, bytes.as_bytes()).await;
        let head = &bytes[..bytes.len().min(50)];
        // A reset of the connection may discard the response.
        assert!(answer.is_empty() || answer.contains(refused), "{head:?}: {answer}");
    }
    // A valid request with odd values in what the metrics read.
    let odd = "POST / HTTP/1.1\r\nhost: t\r\nconnection: close\r\ntraceparent: \u{fffd}\r\ncontent-type: application/grpc\u{fffd}\r\n\r\n";
    assert!(raw(&running, odd.as_bytes()).await.contains("405"));
    running.wait(r#"http_requests_total{method="POST",route="/",status="405",version="canary"} 1"#).await;
    running.wait(r#"http_requests_in_flight{version="canary"} 0"#).await;
    let page = running.page();
    let counted: Vec<_> =
        page.lines().filter(|l| l.starts_with("http_requests_total{") && !l.ends_with(" 0")).collect();
    assert_eq!(counted.len(), 1, "{counted:#?}");
}

#[tokio::test]
async fn a_slow_client_is_one_request_in_flight_until_it_ends() {
    const SIZE: usize = 32 << 20;
    let body: Arc<[u8]> = vec![b'x'; SIZE].into();
    let app = Router::new().route(
        "/",
        get(move || {
            let body = Arc::clone(&body);
            async move {
                let chunks = (0..SIZE / 65_536)
                    .map(move |n| Ok::<_, Infallible>(body[n * 65_536..(n + 1) * 65_536].to_vec()));
                Body::from_stream(futures_util::stream::iter(chunks))
            }
        }),
    );
    let running = Running::start(app).await;
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    let head = b"GET / HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n";
    // Byte by byte. Nothing is counted before the head is complete.
    for byte in &head[..head.len() - 1] {
        stream.write_all(std::slice::from_ref(byte)).await.unwrap();
        stream.flush().await.unwrap();
    }
    assert!(running.page().contains("http_requests_in_flight{version=\"canary\"} 0\n"));
    stream.write_all(&head[head.len() - 1..]).await.unwrap();
    // The client does not read the body, which is larger than the buffers.
    running.wait(r#"http_request_first_byte_seconds_count{method="GET",route="/",version="canary"} 1"#).await;
    running.wait(r#"http_requests_in_flight{version="canary"} 1"#).await;
    assert!(running.page().contains("route=\"/\",status=\"200\",version=\"canary\"} 0\n"));
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.len() > SIZE);
    running.wait(r#"http_requests_total{method="GET",route="/",status="200",version="canary"} 1"#).await;
    running.wait(r#"http_requests_in_flight{version="canary"} 0"#).await;
}
