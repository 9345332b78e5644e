use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use axum::response::Response;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::CONNECTION;
use http::{HeaderValue, Method, StatusCode, Version};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use pin_project_lite::pin_project;

use super::app::App;
use super::long::{Ending, LongPath};
use super::registry::Connection;
use super::stage::Stage;
use super::state::State;

/// The service of one connection: the application, with each request listed from its head to the end of its response
/// body.
pub(super) struct Tracked<S, P> {
    pub(super) app: S,
    pub(super) peer: P,
    pub(super) state: Arc<State>,
    pub(super) connection: Arc<Connection>,
}

impl<S, P> hyper::service::Service<http::Request<Incoming>> for Tracked<S, P>
where
    S: App,
    P: Clone + Send + Sync + 'static,
{
    type Response = Response<TrackedBody<S::Body>>;
    type Error = S::Error;
    type Future = TrackedFuture<S::Future>;

    fn call(&self, request: http::Request<Incoming>) -> Self::Future {
        let in_flight = InFlight::new(Arc::clone(&self.connection), &request);
        let is_connect = request.method() == Method::CONNECT;
        let http1 = request.version() < Version::HTTP_2;
        let path = LongPath::of(request.uri().path());
        TrackedFuture {
            response: call_app(&self.app, request, self.peer.clone()),
            state: Arc::clone(&self.state),
            http1,
            is_connect,
            path,
            in_flight: Some(in_flight),
        }
    }
}

pub(super) fn call_app<S: App, P: Clone + Send + Sync + 'static>(
    app: &S,
    request: http::Request<Incoming>,
    peer: P,
) -> S::Future {
    let mut request: Request = request.map(Body::new);
    request.extensions_mut().insert(ConnectInfo(peer));
    app.answer(request)
}

/// A request in the connection's list. Dropping this removes it.
pub(super) struct InFlight {
    connection: Arc<Connection>,
    id: u64,
}

impl InFlight {
    pub(super) fn new<B>(connection: Arc<Connection>, request: &http::Request<B>) -> Self {
        Self { id: connection.start(request), connection }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.connection.end(self.id);
    }
}

pin_project! {
    pub(super) struct TrackedFuture<F> {
        #[pin]
        response: F,
        state: Arc<State>,
        http1: bool,
        is_connect: bool,
        path: LongPath,
        in_flight: Option<InFlight>,
    }
}

impl<F, B, E> Future for TrackedFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: http_body::Body,
{
    type Output = Result<Response<TrackedBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = ready!(this.response.poll(cx))?;
        let status = response.status();
        let switches = status == StatusCode::SWITCHING_PROTOCOLS || (*this.is_connect && status.is_success());
        let upgraded = *this.http1 && switches;
        // An HTTP/2 client gets a GOAWAY instead.
        if *this.http1 && !upgraded && this.state.stages.is_at(Stage::Propagating) {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
        let in_flight = this.in_flight.take();
        if let Some(in_flight) = &in_flight {
            in_flight.connection.head_sent(in_flight.id, upgraded);
        }
        let ending = Ending::of(*this.path, &this.state.options.long_types, &response).map(|ending| {
            let state = Arc::clone(this.state);
            let closing: BoxFuture<'static, ()> =
                Box::pin(async move { state.stages.reached(Stage::Closing).await });
            (closing, ending)
        });
        Poll::Ready(Ok(response.map(|body| TrackedBody { body, ending, ended: false, in_flight })))
    }
}

pin_project! {
    pub(super) struct TrackedBody<B> {
        #[pin]
        body: B,
        // Only for long streams, which are ended before the deadline.
        ending: Option<(BoxFuture<'static, ()>, Ending)>,
        ended: bool,
        in_flight: Option<InFlight>,
    }
}

impl<B: http_body::Body<Data = Bytes>> http_body::Body for TrackedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        if *this.ended {
            return Poll::Ready(None);
        }
        if let Some((closing, ending)) = this.ending
            && closing.as_mut().poll(cx).is_ready()
        {
            *this.ended = true;
            return Poll::Ready(ending.frame().map(Ok));
        }
        this.body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
