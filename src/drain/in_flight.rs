use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, Request},
    response::Response,
    routing::future::RouteFuture,
};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, Version, header::CONNECTION};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use tower_service::Service as _;

use super::{
    handle::{Inner, Stage},
    registry::Connection,
};

/// The service of one connection: the application, with each request noted from its head to
/// the end of its response body.
pub(super) struct Tracked {
    pub(super) app: Router,
    pub(super) inner: Arc<Inner>,
    pub(super) connection: Arc<Connection>,
}

impl hyper::service::Service<http::Request<Incoming>> for Tracked {
    type Response = Response<TrackedBody>;
    type Error = Infallible;
    type Future = TrackedFuture;

    fn call(&self, request: http::Request<Incoming>) -> Self::Future {
        let in_flight =
            InFlight { id: self.connection.start(&request), connection: Arc::clone(&self.connection) };
        let http1 = request.version() < Version::HTTP_2;
        TrackedFuture {
            response: call_app(&self.app, request, self.connection.peer),
            inner: http1.then(|| Arc::clone(&self.inner)),
            in_flight: Some(in_flight),
        }
    }
}

pub(super) fn call_app(
    app: &Router,
    request: http::Request<Incoming>,
    peer: SocketAddr,
) -> RouteFuture<Infallible> {
    let mut request: Request = request.map(Body::new);
    request.extensions_mut().insert(ConnectInfo(peer));
    // A router is always ready.
    app.clone().call(request)
}

/// One request; ends it when dropped.
struct InFlight {
    connection: Arc<Connection>,
    id: u64,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.connection.end(self.id);
    }
}

pin_project! {
    pub(super) struct TrackedFuture {
        #[pin]
        response: RouteFuture<Infallible>,
        // Only for HTTP/1, whose responses have to say that the connection closes.
        inner: Option<Arc<Inner>>,
        in_flight: Option<InFlight>,
    }
}

impl Future for TrackedFuture {
    type Output = Result<Response<TrackedBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Ok(mut response) = ready!(this.response.poll(cx));
        let draining = |inner: &Arc<Inner>| inner.is_at(Stage::Propagating);
        if this.inner.as_ref().is_some_and(draining) && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
        let in_flight = this.in_flight.take();
        if let Some(in_flight) = &in_flight {
            in_flight.connection.head_sent(in_flight.id);
        }
        Poll::Ready(Ok(response.map(|body| TrackedBody { body, in_flight })))
    }
}

pin_project! {
    pub(super) struct TrackedBody {
        #[pin]
        body: Body,
        in_flight: Option<InFlight>,
    }
}

impl http_body::Body for TrackedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
