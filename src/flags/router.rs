//! A flag that chooses between two services.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use http::Request;
use pin_project_lite::pin_project;
use tower::ServiceExt;
use tower::util::Oneshot;
use tower_layer::Layer;
use tower_service::Service;

use super::decisions::Decisions;
use super::flag::Flag;

/// Sends a request to a new service if a flag is on for it, otherwise to the legacy one.
///
/// The layer holds the new service and wraps the legacy one. [`FlagRouter::new`] takes both.
///
/// It uses the request's [`Decisions`], so put a [`FlagsLayer`](super::FlagsLayer) around it. Without one the flag's
/// declared default applies, which is logged once. Only the chosen service has to be ready: a new service that is
/// overloaded does not block the legacy one.
///
/// ```
/// use axum::{Router, routing::post};
/// use cutover::flags::{Flag, Flags, FlagsLayer, FlagRouterLayer};
///
/// const NEW_FLOW: Flag = Flag::new("payment-new-flow", false);
///
/// let new: Router = Router::new().route("/pay", post(async || "new"));
/// let legacy: Router = Router::new().route("/pay", post(async || "legacy"));
/// # let flags = Flags::fixed::<&str>([]);
/// let app = legacy
///     .layer(FlagRouterLayer::new(NEW_FLOW, new))
///     .layer(FlagsLayer::new(flags));
/// ```
#[derive(Clone, Debug)]
pub struct FlagRouterLayer<N> {
    flag: Flag,
    new: N,
}

impl<N> FlagRouterLayer<N> {
    /// A layer that sends requests to `new` if `flag` is on.
    pub fn new(flag: Flag, new: N) -> Self {
        Self { flag, new }
    }
}

impl<N: Clone, L> Layer<L> for FlagRouterLayer<N> {
    type Service = FlagRouter<N, L>;

    fn layer(&self, legacy: L) -> Self::Service {
        FlagRouter::new(self.flag, self.new.clone(), legacy)
    }
}

/// The service that [`FlagRouterLayer`] makes.
#[derive(Clone, Debug)]
pub struct FlagRouter<N, L> {
    flag: Flag,
    new: N,
    legacy: L,
    warned: Arc<AtomicBool>,
}

impl<N, L> FlagRouter<N, L> {
    /// A router between two services.
    pub fn new(flag: Flag, new: N, legacy: L) -> Self {
        Self { flag, new, legacy, warned: Arc::default() }
    }

    fn decide<B>(&self, request: &Request<B>) -> bool {
        match Decisions::of(request.extensions()) {
            Some(decisions) => decisions.decide(&self.flag),
            None => {
                if !self.warned.swap(true, Ordering::Relaxed) {
                    tracing::error!(
                        flag = self.flag.name(),
                        "no `FlagsLayer` around a `FlagRouter`; the declared default of the flag applies"
                    );
                }
                self.flag.default
            }
        }
    }
}

impl<N, L, B> Service<Request<B>> for FlagRouter<N, L>
where
    N: Service<Request<B>> + Clone,
    L: Service<Request<B>, Response = N::Response, Error = N::Error> + Clone,
{
    type Response = N::Response;
    type Error = N::Error;
    type Future = FlagRouterFuture<N, L, B>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        // Which of the two has to be ready depends on the request, so `oneshot` waits for it in `call`.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let chosen = if self.decide(&request) {
            Chosen::New { future: self.new.clone().oneshot(request) }
        } else {
            Chosen::Legacy { future: self.legacy.clone().oneshot(request) }
        };
        FlagRouterFuture { chosen }
    }
}

pin_project! {
    /// The response future of the chosen service.
    pub struct FlagRouterFuture<N, L, B>
    where
        N: Service<Request<B>>,
        L: Service<Request<B>>,
    {
        #[pin]
        chosen: Chosen<N, L, B>,
    }
}

pin_project! {
    #[project = ChosenProjection]
    enum Chosen<N, L, B>
    where
        N: Service<Request<B>>,
        L: Service<Request<B>>,
    {
        New { #[pin] future: Oneshot<N, Request<B>> },
        Legacy { #[pin] future: Oneshot<L, Request<B>> },
    }
}

impl<N, L, B> Future for FlagRouterFuture<N, L, B>
where
    N: Service<Request<B>>,
    L: Service<Request<B>, Response = N::Response, Error = N::Error>,
{
    type Output = Result<N::Response, N::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().chosen.project() {
            ChosenProjection::New { future } => future.poll(cx),
            ChosenProjection::Legacy { future } => future.poll(cx),
        }
    }
}
