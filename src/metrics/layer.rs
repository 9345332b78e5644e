use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use ::http::{Request, Response};
use axum::extract::MatchedPath;
use http_body::Body;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::body::{Ending, MetricsBody};
use super::grpc;
use super::http::Http;
use super::labels::{Abort, UNMATCHED, method_index};
use super::nested;
use super::route::{Route, Shard};
use super::ticket::Ticket;
use super::trace::TraceId;

/// Puts [`MetricsService`] around a service; from [`Metrics::layer`](super::Metrics::layer).
///
/// Give it to [`axum::Router::layer`] after the routes were added, so that it sees which route matched. Around a whole
/// router it sees none, and counts every request as `unmatched`. The requests of a service that
/// [`nest_service`](axum::Router::nest_service) added have its prefix as their route.
///
/// A gRPC service of tonic is one route of its router, `/package.Service/{*rest}`. Its methods have a route each if they
/// are [declared](super::Metrics::declare); then the layer may be anywhere.
#[derive(Clone)]
pub struct MetricsLayer {
    pub(super) http: Arc<Http>,
}

impl fmt::Debug for MetricsLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetricsLayer").finish_non_exhaustive()
    }
}

impl<S> Layer<S> for MetricsLayer {
    type Service = MetricsService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        let place =
            Place { http: Arc::clone(&self.http), first: OnceLock::new(), without_path: OnceLock::new() };
        MetricsService { inner, place: Arc::new(place) }
    }
}

/// What one instance of the layer remembers. A router puts an instance around each of its routes, so that the route of
/// the first request is usually that of all others.
struct Place {
    http: Arc<Http>,
    first: OnceLock<Arc<Route>>,
    /// The route of requests without a [`MatchedPath`]: the prefix of a nested service, or `unmatched`.
    without_path: OnceLock<Arc<Route>>,
}

impl Place {
    fn shard<B>(&self, request: &Request<B>) -> Arc<Shard> {
        let matched = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
        if grpc::is_call(request)
            && matched.is_none_or(|matched| matched.ends_with("/{*rest}"))
            && let Some(route) = self.http.known(request.uri().path())
        {
            return Arc::clone(route.shard());
        }
        let Some(name) = matched else {
            let route = self.without_path.get_or_init(|| {
                let prefix = nested::nested_prefix(request.extensions());
                self.http.route(prefix.as_deref().unwrap_or(UNMATCHED))
            });
            return Arc::clone(route.shard());
        };
        let first = self.first.get_or_init(|| self.http.route(name));
        if *first.name == *name {
            return Arc::clone(first.shard());
        }
        Arc::clone(self.http.route(name).shard())
    }
}

/// Counts each request of `S` once, at its end.
#[derive(Clone)]
pub struct MetricsService<S> {
    inner: S,
    place: Arc<Place>,
}

impl<S: fmt::Debug> fmt::Debug for MetricsService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetricsService").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<S, B, R> Service<Request<B>> for MetricsService<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: Body,
{
    type Response = Response<MetricsBody<R>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let keeps_trace = self.place.http.keeps_exemplars();
        let trace = if keeps_trace { TraceId::of(request.headers()) } else { None };
        let mut ticket = Ticket::new(self.place.shard(&request), method_index(request.method()), trace);
        ticket.runs();
        let inner = self.inner.call(request);
        ticket.ran();
        ResponseFuture { inner, ticket: Some(ticket) }
    }
}

pin_project! {
    /// The response future of [`MetricsService`]. Dropped before the response head, it counts the request as aborted.
    pub struct ResponseFuture<F> {
        #[pin]
        inner: F,
        ticket: Option<Ticket>,
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

impl<F, R, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: Body,
{
    type Output = Result<Response<MetricsBody<R>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        this.ticket.iter_mut().for_each(Ticket::runs);
        let polled = this.inner.poll(cx);
        this.ticket.iter_mut().for_each(Ticket::ran);
        let result = ready!(polled);
        let mut ticket = this.ticket.take();
        Poll::Ready(match result {
            Ok(response) => {
                ticket.iter_mut().for_each(Ticket::first_byte);
                let ending = Ending::of(&response, ticket.as_ref().is_some_and(Ticket::is_head));
                Ok(response.map(|body| MetricsBody::new(body, ending, ticket)))
            }
            Err(error) => {
                if let Some(mut ticket) = ticket {
                    ticket.aborted(Abort::ServiceError);
                }
                Err(error)
            }
        })
    }
}
