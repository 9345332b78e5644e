use std::{fmt, sync::Arc};

use ::http::{StatusCode, header::CONTENT_TYPE};
use axum::{Router, response::IntoResponse, routing::get};
use prometheus::{IntGauge, Opts, Registry, TEXT_FORMAT, TextEncoder};

use super::{MetricsLayer, collector::HttpCollector, http::Http};
use crate::release::Release;

/// The metrics of one process: a registry of its own, the HTTP families, `build_info`.
///
/// Cheap to clone; clones are the same registry. Rooms and services add families of their
/// own through [`Metrics::registry`].
///
/// ```
/// use axum::{Router, routing::get};
/// use cutover::{metrics::Metrics, release::Release};
///
/// let metrics = Metrics::new(&Release::new("payments", "canary")?)?;
/// let app: Router = Router::new()
///     .route("/orders/{id}", get(|| async { "an order" }))
///     .layer(metrics.layer());
/// let admin = metrics.router();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A canary judge can then ask for the share of failures, which is a number from the first
/// scrape on (for a route's method, from its first request on):
///
/// ```promql
/// sum(rate(http_requests_total{version="canary",status=~"5.."}[1m]))
///   / sum(rate(http_requests_total{version="canary"}[1m]))
/// ```
///
/// Before any request was served this is 0/0, so the query's result exists and is NaN.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    release: Release,
    http: Arc<Http>,
}

impl Metrics {
    /// A registry that holds `build_info{service,version,revision} 1` and the HTTP families.
    ///
    /// # Errors
    ///
    /// None is known: the registry is new, so that no name can be taken, and the names are
    /// constants. The error is the registry's own.
    pub fn new(release: &Release) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let build_info = IntGauge::with_opts(
            Opts::new("build_info", "The build that runs; always 1.")
                .const_label("service", release.service())
                .const_label("version", release.version())
                .const_label("revision", release.revision()),
        )?;
        build_info.set(1);
        registry.register(Box::new(build_info))?;

        let http = Arc::new(Http::new());
        let collector = HttpCollector::new(Arc::clone(&http), release.version())?;
        registry.register(Box::new(collector))?;
        Ok(Self { registry, release: release.clone(), http })
    }

    /// Where families are registered. Families that a canary is judged by need the label
    /// `version`, from [`Metrics::release`].
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Whose metrics these are.
    pub fn release(&self) -> &Release {
        &self.release
    }

    /// The layer that counts requests; every layer of one `Metrics` counts into the same
    /// series, so a request must pass only one of them.
    pub fn layer(&self) -> MetricsLayer {
        MetricsLayer { http: Arc::clone(&self.http) }
    }

    /// `GET /metrics` in Prometheus' text format, for the admin listener.
    pub fn router(&self) -> Router {
        let registry = self.registry.clone();
        Router::new().route("/metrics", get(move || async move { exposition(&registry) }))
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("release", &self.release).finish_non_exhaustive()
    }
}

fn exposition(registry: &Registry) -> axum::response::Response {
    match TextEncoder::new().encode_to_string(&registry.gather()) {
        Ok(text) => ([(CONTENT_TYPE, TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
