use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{HeaderValue, Request, Response, StatusCode, header::RETRY_AFTER};
use pin_project_lite::pin_project;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tower_layer::Layer;
use tower_service::Service;

use super::PoolWaitMetrics;

/// Lets as many in as the pool's share has connections, first come, first served, and turns away who would wait too long.
///
/// As a layer it answers 503 with `Retry-After: 1`, and a request holds its place until its handler is done. With room,
/// admission is one compare-and-swap; giving the place back takes the semaphore's short lock for waiters.
#[derive(Debug, Clone)]
pub struct Admission {
    places: Arc<Semaphore>,
    limit: Duration,
    waits: PoolWaitMetrics,
}

/// A place before the pool; dropping it gives it back.
#[derive(Debug)]
#[must_use = "the place is given back when this is dropped"]
pub struct AdmissionPermit {
    _place: OwnedSemaphorePermit,
}

/// No place came free in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no database connection came free in time")]
pub struct Overloaded;

impl Admission {
    pub(super) fn new(places: Arc<Semaphore>, limit: Duration, waits: PoolWaitMetrics) -> Self {
        Self { places, limit, waits }
    }

    /// PoolWaitMetrics for a place, at most for the limit.
    ///
    /// # Errors
    ///
    /// [`Overloaded`] when the limit has passed.
    ///
    /// # Cancel safety
    ///
    /// Safe: the place in the queue is given up.
    pub async fn admit(&self) -> Result<AdmissionPermit, Overloaded> {
        match self.try_admit() {
            Some(admitted) => Ok(admitted),
            None => self.wait().await,
        }
    }

    fn try_admit(&self) -> Option<AdmissionPermit> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        self.waits.none();
        Some(AdmissionPermit { _place: place })
    }

    async fn wait(&self) -> Result<AdmissionPermit, Overloaded> {
        let _waiting = self.waits.begin();
        match timeout(self.limit, Arc::clone(&self.places).acquire_owned()).await {
            Ok(Ok(place)) => Ok(AdmissionPermit { _place: place }),
            _ => Err(Overloaded),
        }
    }
}

impl<S> Layer<S> for Admission {
    type Service = AdmissionService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        AdmissionService { inner, admission: self.clone() }
    }
}

/// What [`Admission`] makes of a service.
#[derive(Debug, Clone)]
pub struct AdmissionService<S> {
    inner: S,
    admission: Admission,
}

impl<S, R, B> Service<Request<R>> for AdmissionService<S>
where
    S: Service<Request<R>, Response = Response<B>> + Clone,
    B: Default,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = ResponseFuture<S, Request<R>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<R>) -> Self::Future {
        if let Some(admitted) = self.admission.try_admit() {
            let state = State::Serving { future: self.inner.call(request), _admitted: admitted };
            return ResponseFuture { state };
        }
        // The service that was polled ready is the one that is called.
        let waiting = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, waiting);
        let admission = self.admission.clone();
        // Only who has to wait pays for an allocation.
        let wait = Box::pin(async move { admission.wait().await });
        ResponseFuture { state: State::Waiting { wait, held: Some((inner, request)) } }
    }
}

type Wait = Pin<Box<dyn Future<Output = Result<AdmissionPermit, Overloaded>> + Send>>;

pin_project! {
    /// The response, or 503.
    pub struct ResponseFuture<S, Q>
    where
        S: Service<Q>,
    {
        #[pin]
        state: State<S, Q>,
    }
}

pin_project! {
    #[project = Now]
    enum State<S, Q>
    where
        S: Service<Q>,
    {
        Waiting { wait: Wait, held: Option<(S, Q)> },
        Serving { #[pin] future: S::Future, _admitted: AdmissionPermit },
    }
}

impl<S, Q, B> Future for ResponseFuture<S, Q>
where
    S: Service<Q, Response = Response<B>>,
    B: Default,
{
    type Output = Result<Response<B>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                Now::Serving { future, .. } => return future.poll(cx),
                Now::Waiting { wait, held } => match (ready!(wait.as_mut().poll(cx)), held.take()) {
                    (Ok(admitted), Some((mut inner, request))) => {
                        State::Serving { future: inner.call(request), _admitted: admitted }
                    }
                    _ => return Poll::Ready(Ok(no_room())),
                },
            };
            state.set(next);
        }
    }
}

fn no_room<B: Default>() -> Response<B> {
    let mut response = Response::new(B::default());
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}
