use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::extract::MatchedPath;
use axum::http::Request;
use tower_layer::Layer;
use tower_service::Service;
use tracing::Instrument;
use tracing::instrument::Instrumented;

use crate::migration::{Agent, Migration};
use crate::release::Release;

/// A span per request that says which build answered and in which phase. Nobody listening, it costs a comparison.
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
        Spanned { inner, layer: self.clone() }
    }
}

#[derive(Clone)]
pub(super) struct Spanned<S> {
    inner: S,
    layer: SpanLayer,
}

impl<S: Service<Request<B>>, B> Service<Request<B>> for Spanned<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = Instrumented<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The route and not the path, which may hold what is nobody's business and is never the same twice.
        let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str);
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

/// `payment_status=ramp`, for each migration of this build.
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
