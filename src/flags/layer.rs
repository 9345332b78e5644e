//! A layer that pins [`Decisions`] to requests.

use std::convert::Infallible;
use std::task::{Context, Poll};

use axum::extract::{FromRequestParts, OptionalFromRequestParts};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{Request, StatusCode};
use tower_layer::Layer;
use tower_service::Service;

use super::decisions::Decisions;
use super::handle::Flags;
use super::subject::Subject;

/// Puts [`Decisions`] into every request.
///
/// By default their subject has no fields, so a partial rollout is random per request. Derive the subject from the
/// request:
///
/// ```
/// use axum::{Router, http::request::Parts};
/// use cutover::flags::{Flags, FlagsLayer, Subject};
///
/// fn subject(head: &Parts) -> Subject {
///     match head.headers.get("x-user").and_then(|user| user.to_str().ok()) {
///         Some(user) => Subject::new().user(user),
///         None => Subject::new(),
///     }
/// }
///
/// # let flags = Flags::fixed::<&str>([]);
/// let app: Router = Router::new().layer(FlagsLayer::new(flags).subject(subject));
/// ```
///
/// The function runs for every request and sees the extensions that outer layers added. A request that already has
/// decisions keeps them.
#[derive(Clone, Debug)]
pub struct FlagsLayer<E = fn(&Parts) -> Subject> {
    flags: Flags,
    subject: E,
}

impl FlagsLayer {
    /// Decisions about a subject without any fields.
    pub fn new(flags: Flags) -> Self {
        Self { flags, subject: |_| Subject::new() }
    }
}

impl<E> FlagsLayer<E> {
    /// Decisions about the subject that `subject` derives from the request's head.
    pub fn subject<F>(self, subject: F) -> FlagsLayer<F>
    where
        F: Fn(&Parts) -> Subject,
    {
        FlagsLayer { flags: self.flags, subject }
    }
}

impl<S, E: Clone> Layer<S> for FlagsLayer<E> {
    type Service = FlagsService<S, E>;

    fn layer(&self, inner: S) -> Self::Service {
        FlagsService { inner, layer: self.clone() }
    }
}

/// The service that [`FlagsLayer`] makes.
#[derive(Clone, Debug)]
pub struct FlagsService<S, E = fn(&Parts) -> Subject> {
    inner: S,
    layer: FlagsLayer<E>,
}

impl<S, E, B> Service<Request<B>> for FlagsService<S, E>
where
    S: Service<Request<B>>,
    E: Fn(&Parts) -> Subject,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (mut head, body) = request.into_parts();
        if head.extensions.get::<Decisions>().is_none() {
            let subject = (self.layer.subject)(&head);
            let decisions = Decisions::new(self.layer.flags.clone(), subject);
            head.extensions.insert(decisions);
        }
        self.inner.call(Request::from_parts(head, body))
    }
}

/// A handler takes [`Decisions`] on a route without a [`FlagsLayer`]; the response is 500.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the request has no flag decisions; put a `FlagsLayer` around the router")]
#[non_exhaustive]
pub struct MissingDecisions;

impl IntoResponse for MissingDecisions {
    fn into_response(self) -> Response {
        tracing::error!("{self}");
        (StatusCode::INTERNAL_SERVER_ERROR, "flags are not configured").into_response()
    }
}

impl<S: Sync> FromRequestParts<S> for Decisions {
    type Rejection = MissingDecisions;

    async fn from_request_parts(head: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        head.extensions.get().cloned().ok_or(MissingDecisions)
    }
}

impl<S: Sync> OptionalFromRequestParts<S> for Decisions {
    type Rejection = Infallible;

    async fn from_request_parts(head: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
        Ok(head.extensions.get().cloned())
    }
}
