use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use anyhow::Result;
use axum::Router;
use axum::routing::get;
use bytes::Bytes;
use cutover::flags::{Decisions, FixedFlag, Flag, Flags, FlagsLayer};
use cutover::metrics::Metrics;
use cutover::release::Release;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body::Body;
use http_body_util::{Empty, Full};
use opentelemetry_instrumentation_tower::http::server::LayerBuilder;
use opentelemetry_sdk::metrics::{InMemoryMetricExporter, PeriodicReader, SdkMeterProvider};
use tower_http::metrics::in_flight_requests::InFlightRequestsLayer;
use tower_http::trace::TraceLayer;
use tower_layer::Layer;
use tower_service::Service;

use super::counted::PEER;
use super::timing::{Work, compare};

const FLAG: Flag = Flag::new("new-flow", false);

thread_local! {
    /// The headers of the next request. The innermost service returns them, so that building a request allocates
    /// nothing and all that is measured belongs to the layers.
    static HEADERS: Cell<Option<HeaderMap>> = const { Cell::new(None) };
}

fn headers() -> HeaderMap {
    let headers = [
        ("host", "payments.example"),
        ("user-agent", "bench/1"),
        ("accept", "*/*"),
        ("content-type", "application/json"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"),
    ];
    let header = |(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
    HeaderMap::from_iter(headers.map(header))
}

/// The service without layers.
#[derive(Clone)]
struct Bare {
    /// Whether it decides a flag.
    decides: bool,
}

impl Service<Request<Empty<Bytes>>> for Bare {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Empty<Bytes>>) -> Self::Future {
        let (mut head, _) = request.into_parts();
        HEADERS.set(Some(std::mem::take(&mut head.headers)));
        if self.decides {
            std::hint::black_box(Decisions::current().map(|decisions| decisions.decide(&FLAG)));
        }
        ready(Ok(Response::new(Full::new(Bytes::from_static(b"hello")))))
    }
}

/// Requests to this service, each to the end of its body. Each thread has its own clone of the service, as each
/// connection has.
fn requests<'a, S, B>(name: &'static str, service: S) -> Work<'a>
where
    S: Service<Request<Empty<Bytes>>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'a,
    B: Body,
{
    let many = move |times| {
        let mut service = service.clone();
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..times {
            let mut request = Request::new(Empty::new());
            *request.headers_mut() = HEADERS.take().unwrap_or_else(headers);
            let Some(Ok(response)) = service.call(request).now_or_never() else { continue };
            let mut body = pin!(response.into_body());
            while let Poll::Ready(Some(_)) = body.as_mut().poll_frame(&mut cx) {}
        }
    };
    (name, Box::new(many))
}

/// The same through a router, which knows the matched route.
fn routed<'a>(name: &'static str, app: Router) -> Work<'a> {
    let many = move |times| {
        let mut app = app.clone();
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..times {
            let request = Request::get("/orders/1").body(axum::body::Body::empty());
            let Some(Ok(response)) = request.ok().and_then(|request| app.call(request).now_or_never()) else {
                continue;
            };
            let mut body = pin!(response.into_body());
            while let Poll::Ready(Some(_)) = body.as_mut().poll_frame(&mut cx) {}
        }
    };
    (name, Box::new(many))
}

pub(crate) fn run(quick: bool) -> Result<()> {
    let release = Release::new("bench", "canary")?;
    let metrics = Metrics::new(&release)?;
    let flags = Flags::fixed([("new-flow", FixedFlag::ON)]);
    let flags_layer = || FlagsLayer::new(flags.clone());
    let (in_flight, _counter) = InFlightRequestsLayer::pair();
    let (prometheus, _handle) = &*PEER;
    let reader = PeriodicReader::builder(InMemoryMetricExporter::default()).build();
    opentelemetry::global::set_meter_provider(SdkMeterProvider::builder().with_reader(reader).build());
    let otel = LayerBuilder::builder().with_tracing(false).build()?;

    let bare = Bare { decides: false };
    let works = [
        requests("no layer", bare.clone()),
        requests("metrics", metrics.layer().layer(bare.clone())),
        requests("flags", flags_layer().layer(bare.clone())),
        requests("whole stack", metrics.layer().layer(flags_layer().layer(bare.clone()))),
        requests(
            "whole stack, one decision",
            metrics.layer().layer(flags_layer().layer(Bare { decides: true })),
        ),
        requests("axum-prometheus", prometheus.layer(bare.clone())),
        requests("opentelemetry-instrumentation-tower", otel.layer(bare.clone())),
        requests("tower-http trace", TraceLayer::new_for_http().layer(bare.clone())),
        requests("tower-http in-flight", in_flight.layer(bare)),
    ];
    let table = compare("A request through layers, to the end of its body", &works, quick);
    table.minus_first("Cost of layers per request").publish("layers")?;

    let router = || Router::new().route("/orders/{id}", get(async || "hello"));
    let works = [
        routed("no layer", router()),
        routed("metrics", router().layer(metrics.layer())),
        routed("whole stack", router().layer((metrics.layer(), flags_layer()))),
        routed("axum-prometheus", router().layer(prometheus.clone())),
    ];
    let table = compare("A request through a router, to the end of its body", &works, quick);
    table.minus_first("Cost of layers per request, on a router").publish("layers-router")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_through_the_layers_allocates_nothing() -> Result<()> {
        let metrics = Metrics::new(&Release::new("bench", "canary")?)?;
        let flags = FlagsLayer::new(Flags::fixed([("new-flow", FixedFlag::ON)]));
        let (_, many) = requests("", (metrics.layer(), flags).layer(Bare { decides: true }));
        // The first request creates the series and the decisions that later ones use again.
        many(1);
        assert_eq!(allocation_counter::measure(|| many(100)).count_total, 0);
        Ok(())
    }
}
