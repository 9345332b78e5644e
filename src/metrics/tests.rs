use std::convert::Infallible;
use std::future::{pending, ready};
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};

use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use axum::Router;
use axum::body::Body;
use axum::routing::any;
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_service::Service;

use super::{Metrics, MetricsBody};
use crate::release::Release;

pub(super) fn metrics() -> Metrics {
    Metrics::new(&Release::new("payments", "canary").unwrap()).unwrap()
}

pub(super) async fn exposition(metrics: &Metrics) -> String {
    let request = Request::get("/metrics").body(Body::empty()).unwrap();
    let response = metrics.router().oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// All samples above zero of the count families, as they are written.
async fn counted(metrics: &Metrics) -> Vec<String> {
    let text = exposition(metrics).await;
    let lines = text.lines().filter(|l| {
        (l.starts_with("http_requests_total{") || l.starts_with("http_requests_aborted_total{"))
            && !l.ends_with(" 0")
    });
    lines.map(str::to_owned).collect()
}

async fn has(metrics: &Metrics, line: &str) -> bool {
    exposition(metrics).await.lines().any(|l| l == line)
}

/// What a service does with its one request.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Head {
    Answers,
    Fails,
    Never,
    Panics,
    PanicsInCall,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Tail {
    Ends,
    Fails,
    Never,
    Panics,
}

/// What the server in front does with the body.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Reader {
    ToTheEnd,
    Leaves,
}

pub(super) type Frames = Pin<Box<dyn futures_util::Stream<Item = Result<Frame<Bytes>, &'static str>> + Send>>;

pub(super) fn body(tail: Tail) -> StreamBody<Frames> {
    let first = stream::iter([Ok(Frame::data(Bytes::from_static(b"data")))]);
    let rest: Frames = match tail {
        Tail::Ends => Box::pin(stream::empty()),
        Tail::Fails => Box::pin(stream::once(ready(Err("broken")))),
        Tail::Never => Box::pin(stream::pending()),
        Tail::Panics => Box::pin(stream::poll_fn(|_| panic!("in the body"))),
    };
    StreamBody::new(Box::pin(first.chain(rest)) as Frames)
}

async fn exchange(metrics: &Metrics, head: Head, tail: Tail, reader: Reader) {
    let mut service = metrics.layer().layer(service_fn(move |_: Request<()>| {
        assert!(head != Head::PanicsInCall, "in the call");
        async move {
            match head {
                Head::Answers => Ok(Response::new(body(tail))),
                Head::Fails => Err("no"),
                Head::Never => pending().await,
                Head::Panics | Head::PanicsInCall => panic!("in the handler"),
            }
        }
    }));
    let whole = async {
        let Ok(response) = service.call(Request::new(())).await else {
            return;
        };
        let mut body = response.into_body();
        while let Some(Ok(_)) = body.frame().await {
            if reader == Reader::Leaves {
                return;
            }
        }
    };
    // Polled once by hand and dropped: nothing here waits for anything but `Never`.
    let _ = AssertUnwindSafe(async { whole.now_or_never() }).catch_unwind().await;
}

fn expected(head: Head, tail: Tail, reader: Reader) -> (&'static str, Option<&'static str>) {
    match (head, reader, tail) {
        (Head::Panics | Head::PanicsInCall, _, _) => ("500", Some("panic")),
        (Head::Fails, _, _) => ("500", Some("service_error")),
        (Head::Never, _, _) | (_, Reader::Leaves, _) => ("499", Some("dropped")),
        (Head::Answers, Reader::ToTheEnd, Tail::Ends) => ("200", None),
        (Head::Answers, Reader::ToTheEnd, Tail::Never) => ("499", Some("dropped")),
        (Head::Answers, Reader::ToTheEnd, Tail::Fails) => ("500", Some("body_error")),
        (Head::Answers, Reader::ToTheEnd, Tail::Panics) => ("500", Some("panic")),
    }
}

#[tokio::test]
async fn every_ending_is_counted_once_as_what_it_was() {
    let heads = [Head::Answers, Head::Fails, Head::Never, Head::Panics, Head::PanicsInCall];
    for head in heads {
        for tail in [Tail::Ends, Tail::Fails, Tail::Never, Tail::Panics] {
            for reader in [Reader::ToTheEnd, Reader::Leaves] {
                let metrics = metrics();
                exchange(&metrics, head, tail, reader).await;
                let (status, reason) = expected(head, tail, reader);
                let mut lines = Vec::new();
                if let Some(reason) = reason {
                    lines.push(format!(
                        "http_requests_aborted_total{{method=\"GET\",reason=\"{reason}\",route=\"unmatched\",version=\"canary\"}} 1"
                    ));
                }
                lines.push(format!(
                    "http_requests_total{{method=\"GET\",route=\"unmatched\",status=\"{status}\",version=\"canary\"}} 1"
                ));
                let case = format!("{head:?} {tail:?} {reader:?}");
                assert_eq!(counted(&metrics).await, lines, "{case}");
                assert!(has(&metrics, "http_requests_in_flight{version=\"canary\"} 0").await, "{case}");
            }
        }
    }
}

/// A request that hangs is dropped because another one panics: it did not panic itself.
#[tokio::test]
async fn a_bystander_of_a_panic_is_not_a_panic() {
    let metrics = metrics();
    let mut service = metrics
        .layer()
        .layer(service_fn(|_: Request<()>| async { pending::<Result<Response<Body>, Infallible>>().await }));
    let mut hanging = Box::pin(service.call(Request::new(())));
    assert!((&mut hanging).now_or_never().is_none());
    let unwound = std::panic::catch_unwind(AssertUnwindSafe(move || {
        let _held = hanging;
        panic!("elsewhere");
    }));
    assert!(unwound.is_err());
    assert!(counted(&metrics).await[0].contains("reason=\"dropped\""));
}

#[tokio::test]
async fn in_flight_lasts_to_the_end_of_the_body() {
    let metrics = metrics();
    let gauge = |n| format!("http_requests_in_flight{{version=\"canary\"}} {n}");
    let mut service = metrics
        .layer()
        .layer(service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(body(Tail::Never))) }));
    let future = service.call(Request::new(()));
    assert!(has(&metrics, &gauge(1)).await);
    let response = future.await.unwrap();
    assert!(has(&metrics, &gauge(1)).await);
    assert!(counted(&metrics).await.is_empty());
    drop(response);
    assert!(has(&metrics, &gauge(0)).await);
}

/// Servers stop polling when nothing more may be sent; that is an end, not a drop.
#[tokio::test]
async fn a_body_that_need_not_be_read_is_complete() {
    let metrics = metrics();
    let answer = |status: u16, length: Option<u64>| {
        let mut response = Response::builder().status(status);
        if let Some(length) = length {
            response = response.header("content-length", length);
        }
        response.body(body(Tail::Never)).unwrap()
    };
    let finish = async |method: &str, response: Response<_>, read: bool| {
        let mut response = Some(response);
        let mut service = metrics
            .layer()
            .layer(service_fn(move |_: Request<()>| ready(Ok::<_, Infallible>(response.take().unwrap()))));
        let request = Request::builder().method(method).body(()).unwrap();
        let body: MetricsBody<_> = service.call(request).await.unwrap().into_body();
        let mut body = pin!(body);
        if read {
            body.frame().await.unwrap().unwrap();
        }
    };
    finish("HEAD", answer(200, None), false).await;
    finish("GET", answer(204, None), false).await;
    finish("GET", answer(304, Some(4)), false).await;
    finish("GET", answer(200, Some(4)), true).await;
    let lines = counted(&metrics).await.join("\n");
    assert!(!lines.contains("499"), "{lines}");
    finish("GET", answer(200, Some(5)), true).await;
    let lines = counted(&metrics).await.join("\n");
    assert!(lines.contains("499"), "one byte was still owed: {lines}");
}

#[tokio::test]
async fn the_route_is_the_matched_one_and_methods_are_few() {
    let metrics = metrics();
    let app =
        Router::new().route("/orders/{id}", any(|| async { StatusCode::CREATED })).layer(metrics.layer());
    for (method, path) in
        [("POST", "/orders/1"), ("POST", "/orders/2"), ("BREW", "/orders/3"), ("GET", "/nothing/4")]
    {
        let request = Request::builder().method(method).uri(path);
        let request = request.body(Body::empty()).unwrap();
        app.clone().oneshot(request).await.unwrap();
    }
    let line = |method, route, status, count| {
        format!(
            "http_requests_total{{method=\"{method}\",route=\"{route}\",status=\"{status}\",version=\"canary\"}} {count}"
        )
    };
    assert_eq!(
        counted(&metrics).await,
        [
            line("GET", "unmatched", "404", 1),
            line("POST", "/orders/{id}", "201", 2),
            line("other", "/orders/{id}", "201", 1),
        ]
    );
    // The failure that has not come yet is there at zero.
    assert!(has(&metrics, &line("POST", "/orders/{id}", "500", 0)).await);
}

/// Sends one call of a gRPC method and reads the answer to its end.
async fn call(metrics: &Metrics, path: &str, head: Option<&'static str>, trailers: Option<&'static str>) {
    let status = |code| {
        HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static(code))])
    };
    let end = trailers.map(|code| Ok::<_, Infallible>(Frame::trailers(status(code))));
    let frames = stream::iter([Ok(Frame::data(Bytes::from_static(b"data")))]).chain(stream::iter(end));
    let mut response = Response::new(StreamBody::new(frames));
    response.headers_mut().extend(head.into_iter().flat_map(status));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    let mut response = Some(response);
    let mut service = metrics
        .layer()
        .layer(service_fn(move |_: Request<()>| ready(Ok::<_, Infallible>(response.take().unwrap()))));
    let request = Request::post(path).header("content-type", "application/grpc").body(()).unwrap();
    let mut body = service.call(request).await.unwrap().into_body();
    // As servers do: after the trailers nothing more is asked for.
    while let Some(frame) = body.frame().await {
        if frame.unwrap().is_trailers() {
            break;
        }
    }
}

#[tokio::test]
async fn a_call_counts_as_what_its_status_means() {
    let metrics = metrics();
    metrics.declare(&Method::POST, "/shop.Orders/Get");
    for (path, head, trailers) in [
        ("/shop.Orders/Get", None, Some("0")),
        ("/shop.Orders/Get", None, Some("13")),
        ("/shop.Orders/Get", Some("5"), None),
        ("/shop.Orders/Get", None, None),
        ("/made.Up/Name", None, Some("14")),
    ] {
        call(&metrics, path, head, trailers).await;
    }
    let line = |route, status, count| {
        format!(
            "http_requests_total{{method=\"POST\",route=\"{route}\",status=\"{status}\",version=\"canary\"}} {count}"
        )
    };
    assert_eq!(
        counted(&metrics).await,
        [
            line("/shop.Orders/Get", "200", 1),
            line("/shop.Orders/Get", "404", 1),
            line("/shop.Orders/Get", "500", 2),
            line("unmatched", "503", 1),
        ]
    );
}

/// Only calls are looked up by their path: the path of anything else is whatever a client wrote.
#[tokio::test]
async fn a_declared_route_is_not_had_by_its_name() {
    let metrics = metrics();
    metrics.declare(&Method::GET, "/orders/{id}");
    let app: Router = Router::new().layer(metrics.layer());
    let request = Request::get("/orders/{id}").body(Body::empty()).unwrap();
    app.oneshot(request).await.unwrap();
    assert!(counted(&metrics).await[0].contains("unmatched"));
}

#[tokio::test]
async fn the_bucket_of_a_sampled_trace_shows_it() {
    let metrics = metrics();
    let app = Router::new().route("/", any(|| async {})).layer(metrics.layer());
    let request = Request::get("/")
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .body(Body::empty())
        .unwrap();
    let page = async || {
        let request =
            Request::get("/metrics").header("accept", "application/openmetrics-text; version=1.0.0");
        let response = metrics.router().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let kind = response.headers()["content-type"].to_str().unwrap();
        assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"), "{kind}");
        String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    };
    // Requests are looked at for their traces once a page has shown that the reader wants them.
    assert!(!page().await.contains("trace_id"));
    app.oneshot(request).await.unwrap();
    let page = page().await;
    let traced: Vec<_> = page.lines().filter(|line| line.contains("trace_id")).collect();
    assert_eq!(traced.len(), 1, "{page}");
    assert!(traced[0].starts_with(
        "http_request_duration_seconds_bucket{method=\"GET\",route=\"/\",status=\"200\",version=\"canary\",\
         le=\"0.005\"} 1 # {trace_id=\"0af7651916cd43dd8448eb211c80319c\"} 0."
    ));
    assert!(page.contains("\n# TYPE http_requests counter\n"), "{page}");
    assert!(page.ends_with("\n# EOF\n"));
    assert!(!exposition(&metrics).await.contains("trace_id"), "the older format has no exemplars");
}

#[tokio::test]
async fn the_first_byte_is_counted_apart_from_the_end() {
    let metrics = metrics();
    let mut service = metrics
        .layer()
        .layer(service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(body(Tail::Never))) }));
    let response = service.call(Request::new(())).await.unwrap();
    let first =
        "http_request_first_byte_seconds_count{method=\"GET\",route=\"unmatched\",version=\"canary\"} 1";
    assert!(has(&metrics, first).await);
    assert!(counted(&metrics).await.is_empty());
    drop(response);
    assert!(has(&metrics, first).await);
}

#[tokio::test]
async fn a_new_process_has_zero_series_and_its_build() {
    let metrics = metrics();
    metrics.declare(&Method::POST, "/orders");
    for line in [
        r#"http_requests_total{method="POST",route="/orders",status="503",version="canary"} 0"#,
        r#"http_requests_aborted_total{method="POST",reason="panic",route="/orders",version="canary"} 0"#,
        r#"http_request_first_byte_seconds_count{method="POST",route="/orders",version="canary"} 0"#,
        r#"build_info{revision="unknown",service="payments",version="canary"} 1"#,
        r#"http_requests_total{method="GET",route="unmatched",status="200",version="canary"} 0"#,
        r#"http_requests_total{method="GET",route="unmatched",status="500",version="canary"} 0"#,
        r#"http_request_duration_seconds_bucket{method="GET",route="unmatched",status="200",version="canary",le="+Inf"} 0"#,
        r#"http_requests_in_flight{version="canary"} 0"#,
    ] {
        assert!(has(&metrics, line).await, "{line}");
    }
}
