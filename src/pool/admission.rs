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

use super::waits::{PoolWaitMetrics, REFUSED_QUEUE_FULL, REFUSED_TIMEOUT};

/// Admits as many requests as the pool's share has connections, in order of arrival, and refuses those that would wait too
/// long.
///
/// At most 1,000 requests wait; further ones are refused at once. [`Admission::queue`] changes that.
///
/// As a layer it answers 503 with `Retry-After: 1`. A request keeps its place until its handler has finished. If a place is
/// free, admission is one compare-and-swap; returning the place takes the semaphore's short lock.
#[derive(Debug, Clone)]
pub struct Admission {
    places: Arc<Semaphore>,
    limit: Duration,
    queue: Arc<Semaphore>,
    waits: PoolWaitMetrics,
}

/// How many requests may wait by default: as many as fit into a few megabytes.
const QUEUE: usize = 1_000;

/// A place for one request. Dropping it returns the place.
#[derive(Debug)]
#[must_use = "dropping this returns the place"]
pub struct AdmissionPermit {
    _place: OwnedSemaphorePermit,
}

/// No place became free in time, or too many requests waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no database connection became free in time, or too many requests wait for one; retry later")]
pub struct Overloaded;

impl Admission {
    pub(super) fn new(places: Arc<Semaphore>, limit: Duration, waits: PoolWaitMetrics) -> Self {
        Self { places, limit, queue: Arc::new(Semaphore::new(QUEUE)), waits }
    }

    /// How many requests may wait for a place at the same time. Default 1,000. Clones that were made before keep theirs.
    #[must_use]
    pub fn queue(self, requests: u32) -> Self {
        let requests = usize::try_from(requests).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self { queue: Arc::new(Semaphore::new(requests)), ..self }
    }

    /// Waits for a place, at most for the limit.
    ///
    /// # Errors
    ///
    /// [`Overloaded`] if the limit has passed, or if too many requests wait already.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a dropped future leaves the queue.
    pub async fn admit(&self) -> Result<AdmissionPermit, Overloaded> {
        match self.try_admit() {
            Some(permit) => Ok(permit),
            None => self.wait().await,
        }
    }

    fn try_admit(&self) -> Option<AdmissionPermit> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        self.waits.none();
        Some(AdmissionPermit { _place: place })
    }

    async fn wait(&self) -> Result<AdmissionPermit, Overloaded> {
        let Ok(_in_queue) = self.queue.try_acquire() else {
            self.waits.refused(REFUSED_QUEUE_FULL);
            return Err(Overloaded);
        };
        let _waiting = self.waits.begin();
        match timeout(self.limit, Arc::clone(&self.places).acquire_owned()).await {
            Ok(Ok(place)) => Ok(AdmissionPermit { _place: place }),
            _ => {
                self.waits.refused(REFUSED_TIMEOUT);
                Err(Overloaded)
            }
        }
    }
}

impl<S> Layer<S> for Admission {
    type Service = AdmissionService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        AdmissionService { inner, admission: self.clone() }
    }
}

/// The service that [`Admission`] makes as a layer.
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
        if let Some(permit) = self.admission.try_admit() {
            let state = State::Serving { future: self.inner.call(request), _permit: permit };
            return ResponseFuture { state };
        }
        // Only the instance that was polled ready may be called.
        let waiting = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, waiting);
        let admission = self.admission.clone();
        // Only a request that waits costs an allocation.
        let wait = Box::pin(async move { admission.wait().await });
        ResponseFuture { state: State::Waiting { wait, call: Some((inner, request)) } }
    }
}

type Wait = Pin<Box<dyn Future<Output = Result<AdmissionPermit, Overloaded>> + Send>>;

pin_project! {
    /// The response future of [`AdmissionService`]: the inner response, or 503.
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
        Waiting { wait: Wait, call: Option<(S, Q)> },
        Serving { #[pin] future: S::Future, _permit: AdmissionPermit },
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
                Now::Waiting { wait, call } => match (ready!(wait.as_mut().poll(cx)), call.take()) {
                    (Ok(permit), Some((mut inner, request))) => {
                        State::Serving { future: inner.call(request), _permit: permit }
                    }
                    _ => return Poll::Ready(Ok(overloaded())),
                },
            };
            state.set(next);
        }
    }
}

fn overloaded<B: Default>() -> Response<B> {
    let mut response = Response::new(B::default());
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}
