use std::fmt;
use std::sync::Arc;

use ::http::header::CONTENT_TYPE;
use ::http::{HeaderMap, Method, StatusCode};
use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::{IntGauge, Opts, Registry, TEXT_FORMAT, TextEncoder};

use super::collector::{Exemplars, HttpCollector};
use super::http::Http;
use super::labels::method_index;
use super::{MetricsLayer, openmetrics};
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
        Self::in_registry(Registry::new(), release)
    }

    /// The same in a registry that the service has already.
    ///
    /// # Errors
    ///
    /// The registry's own, where it has families of these names.
    pub fn in_registry(registry: Registry, release: &Release) -> Result<Self, prometheus::Error> {
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

    /// Makes the zero series of a route before its first request, so that a canary that was sent nothing yet
    /// has them. `route` is written as the router has it, `/orders/{id}`.
    ///
    /// With `POST` and `/package.Service/Method` the calls of a gRPC method have a route of their own. Without a
    /// declaration they are counted under their service, because a client can make up a method's name.
    ///
    /// ```
    /// # let metrics = cutover::metrics::Metrics::new(&cutover::release::Release::new("payments", "canary")?)?;
    /// use axum::http::Method;
    ///
    /// metrics.declare(&Method::GET, "/orders/{id}");
    /// metrics.declare(&Method::POST, "/payments.v1.Payments/Capture");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn declare(&self, method: &Method, route: &str) {
        self.http.route(route).declare(method_index(method));
    }

    /// `GET /metrics` for the admin listener: in Prometheus' text format, or in OpenMetrics' where the reader
    /// prefers it, as Prometheus itself does. Only the latter has exemplars: the last request of each bucket of
    /// `http_request_duration_seconds` that came with a sampled `traceparent`.
    pub fn router(&self) -> Router {
        let metrics = self.clone();
        let page = move |headers: HeaderMap| async move { metrics.exposition(&headers) };
        Router::new().route("/metrics", get(page))
    }

    fn exposition(&self, headers: &HeaderMap) -> Response {
        let families = self.registry.gather();
        let (kind, page) = if openmetrics::is_preferred(headers) {
            let page = openmetrics::encode(&families, &Exemplars::of(&self.http));
            (openmetrics::CONTENT_TYPE, page.map_err(|error| error.to_string()))
        } else {
            let page = TextEncoder::new().encode_to_string(&families);
            (TEXT_FORMAT, page.map_err(|error| error.to_string()))
        };
        match page {
            Ok(page) => ([(CONTENT_TYPE, kind)], page).into_response(),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error).into_response(),
        }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("release", &self.release).finish_non_exhaustive()
    }
}
