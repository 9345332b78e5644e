use std::fmt;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use axum::extract::MatchedPath;
use axum::http::Request;
use tower_layer::Layer;
use tower_service::Service;
use tracing::Instrument;
use tracing::instrument::Instrumented;

use crate::metrics::nested_prefix;
use crate::migration::{Agent, Migration};
use crate::release::Release;

/// A span per request that names the build that answered and the phase of each migration. Without a subscriber it costs
/// a comparison.
#[derive(Clone)]
pub(super) struct SpanLayer {
    release: Release,
    phases: Phases,
}

impl SpanLayer {
    pub(super) fn new(release: &Release, agent: Option<&Agent>) -> Self {
        let migrations = agent.map(|agent| agent.migrations().cloned().collect()).unwrap_or_default();
        Self { release: release.clone(), phases: Phases(migrations) }
    }
}

impl<S> Layer<S> for SpanLayer {
    type Service = Spanned<S>;

    fn layer(&self, inner: S) -> Spanned<S> {
        Spanned { inner, layer: self.clone(), nested: Arc::default() }
    }
}

#[derive(Clone)]
pub(super) struct Spanned<S> {
    inner: S,
    layer: SpanLayer,
    /// The prefix, where this is around a nested service. A router puts one layer around each of its routes.
    nested: Arc<OnceLock<Option<Arc<str>>>>,
}

impl<S: Service<Request<B>>, B> Service<Request<B>> for Spanned<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = Instrumented<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The route and not the path, which may contain private data and differs for every request.
        let route = match request.extensions().get::<MatchedPath>() {
            Some(path) => path.as_str(),
            None => self
                .nested
                .get_or_init(|| nested_prefix(request.extensions()))
                .as_deref()
                .unwrap_or("unmatched"),
        };
        let span = tracing::info_span!(
            "request",
            method = %request.method(),
            route,
            service = self.layer.release.service(),
            version = self.layer.release.version(),
            phase = %self.layer.phases,
        );
        let future = span.in_scope(|| self.inner.call(request));
        future.instrument(span)
    }
}

/// The phase of each migration of this build, such as `payment_status=ramp`.
#[derive(Clone)]
struct Phases(Arc<[Migration]>);

impl fmt::Display for Phases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, migration) in self.0.iter().enumerate() {
            let blank = if number == 0 { "" } else { " " };
            match migration.current() {
                Some((_, phase)) => write!(f, "{blank}{}={phase}", migration.name())?,
                None => write!(f, "{blank}{}=none", migration.name())?,
            }
        }
        Ok(())
    }
}
