use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use ::http::{Request, Response};
use axum::extract::MatchedPath;
use http_body::Body;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{
    body::MetricsBody,
    http::{Abort, Http, UNMATCHED, method_index},
    ticket::Ticket,
};

/// Puts [`MetricsService`] around a service; from [`Metrics::layer`](super::Metrics::layer).
///
/// Give it to [`axum::Router::layer`] after the routes were added, so that it sees which
/// route matched. Around a whole router it would see none, and count all as `unmatched`.
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
        MetricsService { inner, http: Arc::clone(&self.http) }
    }
}

/// Counts each request of `S` once, at its end.
#[derive(Clone)]
pub struct MetricsService<S> {
    inner: S,
    http: Arc<Http>,
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
        let route = request.extensions().get::<MatchedPath>();
        let route = self.http.route(route.map_or(UNMATCHED, MatchedPath::as_str));
        let mut ticket = Ticket::new(route, method_index(request.method()));
        let inner = ticket.run(|| self.inner.call(request));
        ResponseFuture { inner, ticket: Some(ticket) }
    }
}

pin_project! {
    /// The response of [`MetricsService`]: dropped before its head, it counts as aborted.
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
        let polled = match this.ticket {
            Some(ticket) => ticket.run(|| this.inner.poll(cx)),
            None => this.inner.poll(cx),
        };
        let result = ready!(polled);
        let ticket = this.ticket.take();
        Poll::Ready(match result {
            Ok(response) => {
                let (head, body) = response.into_parts();
                let body = MetricsBody::new(body, &head, ticket);
                Ok(Response::from_parts(head, body))
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
