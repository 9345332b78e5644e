use std::{
    convert::Infallible,
    future::{Future, pending, ready},
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    BoxError, Router,
    body::Body,
    error_handling::HandleError,
    extract::Request,
    http::{StatusCode, header::CONTENT_TYPE},
    response::Response,
    routing::{Route, any},
};
use bytes::Bytes;
use cutover::{
    drain::{Drain, DrainOptions},
    health::Health,
};
use cutover_testkit::{GrpcEnding, GrpcEndings};
use futures_util::{StreamExt, future::BoxFuture, stream};
use http_body_util::{BodyExt, Full};
use hyper::client::conn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tonic::service::Routes;
use tower::layer::layer_fn;
use tower_layer::Layer;
use tower_service::Service;

/// The time limit of each step.
const LIMIT: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Server {
    Axum,
    Tonic,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

/// How a request ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    Fine,
    ErrorStatus,
    /// gRPC only.
    StatusInTrailers,
    /// The inner service returns `Err`.
    ServiceError,
    Panic,
    /// tonic makes trailers of a stream's error, so this is axum only.
    BodyError,
    PanicInBody,
    GoneBeforeHead,
    GoneInBody,
    Unmatched,
}

impl Way {
    pub(crate) const ALL: [Self; 10] = [
        Self::Fine,
        Self::ErrorStatus,
        Self::StatusInTrailers,
        Self::ServiceError,
        Self::Panic,
        Self::BodyError,
        Self::PanicInBody,
        Self::GoneBeforeHead,
        Self::GoneInBody,
        Self::Unmatched,
    ];

    /// The expected outcome.
    pub(crate) fn status(self, server: Server) -> u16 {
        match self {
            Self::Fine => 200,
            Self::ErrorStatus => 503,
            Self::StatusInTrailers
            | Self::ServiceError
            | Self::Panic
            | Self::BodyError
            | Self::PanicInBody => 500,
            Self::GoneBeforeHead | Self::GoneInBody => 499,
            Self::Unmatched if server == Server::Axum => 404,
            Self::Unmatched => 501,
        }
    }

    /// The expected further labels.
    pub(crate) fn reason(self) -> Option<&'static str> {
        match self {
            Self::Fine | Self::ErrorStatus | Self::StatusInTrailers | Self::Unmatched => None,
            Self::ServiceError => Some("service_error"),
            Self::Panic | Self::PanicInBody => Some("panic"),
            Self::BodyError => Some("body_error"),
            Self::GoneBeforeHead | Self::GoneInBody => Some("dropped"),
        }
    }

    /// Whether the client receives a first byte.
    pub(crate) fn has_head(self) -> bool {
        !matches!(self, Self::ServiceError | Self::Panic | Self::GoneBeforeHead)
    }

    /// The gRPC call that ends in this way. Other endings never reach a method.
    fn call(self) -> Option<GrpcEnding> {
        match self {
            Self::Fine => Some(GrpcEnding::Fine),
            Self::ErrorStatus => Some(GrpcEnding::StatusInHead),
            Self::StatusInTrailers => Some(GrpcEnding::StatusInTrailers),
            Self::Panic => Some(GrpcEnding::Panics),
            Self::PanicInBody => Some(GrpcEnding::PanicsInBody),
            Self::GoneBeforeHead => Some(GrpcEnding::Hangs),
            Self::GoneInBody => Some(GrpcEnding::Stalls),
            Self::ServiceError => Some(GrpcEnding::Fine),
            Self::BodyError | Self::Unmatched => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) server: Server,
    pub(crate) protocol: Protocol,
    pub(crate) way: Way,
}

/// All endings.
pub(crate) const CELLS: [Cell; 36] = {
    let mut cells = [Cell { server: Server::Axum, protocol: Protocol::Http1, way: Way::Fine }; 36];
    let (mut next, mut way) = (0, 0);
    while way < Way::ALL.len() {
        let protocols = [Protocol::Http1, Protocol::Http2];
        let mut index = 0;
        while index < protocols.len() {
            let (protocol, way) = (protocols[index], Way::ALL[way]);
            if !matches!(way, Way::StatusInTrailers) {
                cells[next] = Cell { server: Server::Axum, protocol, way };
                next += 1;
            }
            if !matches!(way, Way::BodyError) {
                cells[next] = Cell { server: Server::Tonic, protocol, way };
                next += 1;
            }
            index += 1;
        }
        way += 1;
    }
    assert!(next == 36);
    cells
};

impl Cell {
    fn path(self) -> String {
        match (self.way, self.server) {
            (Way::Unmatched, _) => "/made/up".to_owned(),
            (way, Server::Axum) => format!("/{way:?}"),
            (way, Server::Tonic) => way.call().unwrap().path(),
        }
    }

    /// The expected label of the request.
    pub(crate) fn route(self) -> String {
        if self.way == Way::Unmatched { "unmatched".to_owned() } else { self.path() }
    }
}

/// Reports the arrival of a request in the service, and the drop of its last part.
struct Guard(mpsc::UnboundedSender<Event>);

#[derive(Debug, PartialEq)]
pub(crate) enum Event {
    Arrived,
    Gone,
}

impl Guard {
    fn new(events: mpsc::UnboundedSender<Event>) -> Self {
        let _ = events.send(Event::Arrived);
        Self(events)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.send(Event::Gone);
    }
}

async fn handler(way: Way, guard: Guard) -> Response {
    // The first half is sent before the next part is requested.
    let body = |rest: stream::BoxStream<'static, io::Result<&'static str>>| {
        let turn = stream::once(async { tokio::task::yield_now().await }).filter_map(|()| ready(None));
        let body = stream::iter([Ok("half")]).chain(turn).chain(rest).inspect(move |_| _ = &guard);
        Response::new(Body::from_stream(body))
    };
    match way {
        Way::Fine => body(stream::empty().boxed()),
        Way::BodyError => body(stream::once(ready(Err(io::Error::other("broken")))).boxed()),
        Way::PanicInBody => body(stream::poll_fn(|_| panic!("in the body")).boxed()),
        Way::GoneInBody => body(stream::pending().boxed()),
        Way::ErrorStatus => {
            let mut response = body(stream::empty().boxed());
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            response
        }
        Way::GoneBeforeHead => pending().await,
        Way::Panic => panic!("in the handler"),
        Way::StatusInTrailers | Way::ServiceError | Way::Unmatched => {
            unreachable!("never reaches a handler of axum")
        }
    }
}

fn routes(server: Server, events: mpsc::UnboundedSender<Event>) -> Router {
    match server {
        Server::Tonic => Routes::new(GrpcEndings::new(move || Guard::new(events.clone()))).into_axum_router(),
        Server::Axum => Way::ALL.into_iter().fold(Router::new(), |router, way| {
            let events = events.clone();
            router.route(&format!("/{way:?}"), any(move || handler(way, Guard::new(events.clone()))))
        }),
    }
}

/// The innermost layer. It returns an error on request.
#[derive(Clone)]
pub(crate) struct Fails<S>(S);

impl<S> Service<Request> for Fails<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(cx).map_err(|never| match never {})
    }

    fn call(&mut self, request: Request) -> Self::Future {
        if request.headers().contains_key("x-fail") {
            return Box::pin(ready(Err("told to".into())));
        }
        let response = self.0.call(request);
        Box::pin(async move { response.await.map_err(|never| match never {}) })
    }
}

type Serving = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A server of the routes of a cell.
pub(crate) type Serve = Box<dyn FnOnce(Cell, mpsc::UnboundedSender<Event>, TcpListener) -> Serving>;

/// The library's serving loop, with `layer` on the router.
pub(crate) fn layered<L, B>(layer: L) -> Serve
where
    L: Layer<Fails<Route>> + Clone + Send + Sync + 'static,
    L::Service: Service<Request, Response = Response<B>, Error = BoxError> + Clone + Send + Sync + 'static,
    <L::Service as Service<Request>>::Future: Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    Box::new(move |cell, events, listener| {
        let handled = layer_fn(move |route| {
            HandleError::new(layer.layer(Fails(route)), async |_: BoxError| StatusCode::INTERNAL_SERVER_ERROR)
        });
        let app = routes(cell.server, events).layer(handled);
        let drain = Drain::new(&Health::new(), DrainOptions::default()).unwrap();
        Box::pin(async move { drop(drain.serve(listener, app).await) })
    })
}

/// tonic's server, with `layer` around everything.
pub(crate) fn tonics_own(layer: cutover::metrics::MetricsLayer) -> Serve {
    Box::new(move |_, events, listener| {
        let service = GrpcEndings::new(move || Guard::new(events.clone()));
        let accepted = stream::poll_fn(move |cx| {
            listener.poll_accept(cx).map(|accepted| Some(accepted.map(|(stream, _)| stream)))
        });
        Box::pin(async move {
            let server = tonic::transport::Server::builder().layer(layer).add_service(service);
            drop(server.serve_with_incoming(accepted).await);
        })
    })
}

/// Sends the request of the cell on its own connection and waits for its end on both sides.
pub(crate) async fn run(serve: Serve, cell: Cell) {
    let whole = async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, mut events) = mpsc::unbounded_channel();
        let server = tokio::spawn(serve(cell, sender, listener));
        request(address, cell, &mut events).await;
        server.abort();
    };
    let in_time = tokio::time::timeout(LIMIT, whole).await;
    assert!(in_time.is_ok(), "{cell:?} did not end");
}

async fn request(address: SocketAddr, cell: Cell, events: &mut mpsc::UnboundedReceiver<Event>) {
    let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let request = hyper::Request::post(format!("http://test{}", cell.path())).header("host", "test");
    let request = match cell.server {
        Server::Axum => request,
        Server::Tonic => request.header(CONTENT_TYPE, "application/grpc").header("te", "trailers"),
    };
    let request = if cell.way == Way::ServiceError { request.header("x-fail", "1") } else { request };
    // Not compressed, no bytes.
    let request = request.body(Full::new(Bytes::from_static(&[0; 5]))).unwrap();
    let (response, connection) = match cell.protocol {
        Protocol::Http1 => {
            let (mut sender, connection) = conn::http1::handshake(io).await.unwrap();
            let connection = tokio::spawn(async move { drop(connection.await) });
            (tokio::spawn(async move { sender.send_request(request).await }), connection)
        }
        Protocol::Http2 => {
            let (mut sender, connection) = conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
            let connection = tokio::spawn(async move { drop(connection.await) });
            (tokio::spawn(async move { sender.send_request(request).await }), connection)
        }
    };
    let reaches_a_handler = !matches!(cell.way, Way::ServiceError | Way::Unmatched);
    if reaches_a_handler {
        assert_eq!(events.recv().await, Some(Event::Arrived));
    }
    if cell.way == Way::GoneBeforeHead {
        response.abort();
        connection.abort();
    } else if let Ok(response) = response.await.unwrap() {
        let mut body = response.into_body();
        if cell.way == Way::GoneInBody {
            body.frame().await.unwrap().unwrap();
            connection.abort();
        } else {
            let _ = body.collect().await;
        }
    }
    if reaches_a_handler {
        assert_eq!(events.recv().await, Some(Event::Gone));
    }
}
