use std::future::Future;

use axum::{extract::Request, response::Response};
use bytes::Bytes;
use tower::{ServiceExt, util::Oneshot};
use tower_service::Service;

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// An application that a drain can serve: an axum `Router`, tonic's `Routes`, or any other HTTP service with a response body
/// of [`Bytes`]. It is implemented for all of them.
///
/// An error of the service ends the connection (HTTP/1) or the stream (HTTP/2).
pub trait App: Clone + Send + 'static {
    /// The response's body.
    type Body: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static;
    /// The error of the service.
    type Error: Into<BoxError>;
    /// The response future.
    type Future: Future<Output = Result<Response<Self::Body>, Self::Error>> + Send + 'static;

    /// Answers one request.
    fn answer(&self, request: Request) -> Self::Future;
}

impl<S, B> App for S
where
    S: Service<Request, Response = Response<B>, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Body = B;
    type Error = S::Error;
    type Future = Oneshot<S, Request>;

    fn answer(&self, request: Request) -> Self::Future {
        self.clone().oneshot(request)
    }
}
