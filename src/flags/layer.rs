//! A layer that pins [`Decisions`] to requests.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::extract::{FromRequestParts, OptionalFromRequestParts};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{Request, StatusCode};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::decisions::Decisions;
use super::handle::Flags;
use super::scope::{self, Entered, Scope};
use super::spare::Spares;
use super::subject::Subject;

/// Makes [`Decisions`] for every request.
///
/// They are the [current](Decisions::current) ones while the service inside the layer runs, so that a request costs no
/// allocation. A service that answers in another task (`tower::buffer`) does not see them there; with
/// [`in_extensions`](FlagsLayer::in_extensions) it finds them in the request.
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
/// decisions keeps them: its own, or those of the request in whose service it is made.
#[derive(Clone)]
pub struct FlagsLayer<E = fn(&Parts) -> Subject> {
    flags: Flags,
    /// `None`: subjects have no fields.
    subject: Option<E>,
    extends: bool,
    spares: Spares,
}

impl FlagsLayer {
    /// Decisions about a subject without any fields.
    pub fn new(flags: Flags) -> Self {
        let spares = Spares::new(&flags);
        Self { flags, subject: None, extends: false, spares }
    }
}

impl<E> FlagsLayer<E> {
    /// Decisions about the subject that `subject` derives from the request's head.
    pub fn subject<F>(self, subject: F) -> FlagsLayer<F>
    where
        F: Fn(&Parts) -> Subject,
    {
        FlagsLayer { flags: self.flags, subject: Some(subject), extends: self.extends, spares: self.spares }
    }

    /// Also puts the decisions into the request's extensions, for a service that answers in another task. This costs
    /// allocations for each request.
    #[must_use]
    pub fn in_extensions(mut self) -> Self {
        self.extends = true;
        self
    }
}

impl<E> fmt::Debug for FlagsLayer<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlagsLayer").field("flags", &self.flags).finish_non_exhaustive()
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
    type Future = FlagsFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        if scope::is_set() || request.extensions().get::<Decisions>().is_some() {
            return FlagsFuture { inner: self.inner.call(request), scope: Scope::None };
        }
        let mut subject = Subject::new();
        if let Some(subject_of) = &self.layer.subject {
            let (head, body) = request.into_parts();
            subject = subject_of(&head);
            request = Request::from_parts(head, body);
        }
        let mut scope = Scope::new(self.layer.spares.mine(), subject);
        if self.layer.extends
            && let Some(decisions) = scope.decisions()
        {
            request.extensions_mut().insert(decisions);
        }
        let entered = Entered::new(&mut scope);
        let inner = self.inner.call(request);
        drop(entered);
        FlagsFuture { inner, scope }
    }
}

pin_project! {
    /// The response future of [`FlagsService`].
    pub struct FlagsFuture<F> {
        #[pin]
        inner: F,
        scope: Scope,
    }
}

impl<F: Future> Future for FlagsFuture<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        if this.scope.is_none() {
            return this.inner.poll(cx);
        }
        let entered = Entered::new(this.scope);
        let polled = this.inner.poll(cx);
        drop(entered);
        if polled.is_ready() {
            this.scope.end();
        }
        polled
    }
}

impl<F> fmt::Debug for FlagsFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlagsFuture").finish_non_exhaustive()
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
        Decisions::of(&head.extensions).ok_or(MissingDecisions)
    }
}

impl<S: Sync> OptionalFromRequestParts<S> for Decisions {
    type Rejection = Infallible;

    async fn from_request_parts(head: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
        Ok(Decisions::of(&head.extensions))
    }
}
