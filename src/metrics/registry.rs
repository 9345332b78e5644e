use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ::http::header::CONTENT_TYPE;
use ::http::{HeaderMap, Method, StatusCode};
use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::{IntGauge, Opts, Registry, TEXT_FORMAT, TextEncoder};

use super::bounds::Bounds;
use super::collector::{Exemplars, HttpCollector};
use super::http::Http;
use super::labels::method_index;
use super::{MetricsLayer, openmetrics, process};
use crate::config::ConfigError;
use crate::release::Release;

/// Why [`Metrics::with_buckets`] failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetricsError {
    /// Bounds that can't be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The registry has families of these names.
    #[error(transparent)]
    Registry(#[from] prometheus::Error),
}

/// The metrics of one process: a registry with the HTTP families and `build_info`.
///
/// Cheap to clone; clones share the registry. Services add their own families through [`Metrics::registry`].
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
/// A canary judge can then query the share of failures. It is a number from the first scrape on (for a method of a route,
/// from its first request on):
///
/// ```promql
/// sum(rate(http_requests_total{version="canary",status=~"5.."}[1m]))
///   / sum(rate(http_requests_total{version="canary"}[1m]))
/// ```
///
/// Before the first request this is 0/0: the result exists and is NaN.
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
    /// The registry's error. None is known: the registry is new, and the names are constants.
    pub fn new(release: &Release) -> Result<Self, prometheus::Error> {
        Self::in_registry(Registry::new(), release)
    }

    /// The same in an existing registry.
    ///
    /// # Errors
    ///
    /// The registry's error, if it has families of these names.
    pub fn in_registry(registry: Registry, release: &Release) -> Result<Self, prometheus::Error> {
        Self::with_bounds(registry, release, Bounds::default())
    }

    /// The same with other bounds of the buckets of both histograms: 1 to 24, shortest first.
    ///
    /// Instances of one service should have the same bounds, because a quantile over different ones is wrong.
    ///
    /// ```
    /// # use std::time::Duration;
    /// use cutover::{metrics::Metrics, release::Release};
    /// use prometheus::Registry;
    ///
    /// let bounds = [1, 2, 5, 10, 20, 50, 100, 1_000].map(Duration::from_millis);
    /// let metrics = Metrics::with_buckets(Registry::new(), &Release::new("payments", "canary")?, &bounds)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`MetricsError::Config`] with every bound that can't be used, and the registry's error.
    pub fn with_buckets(
        registry: Registry,
        release: &Release,
        bounds: &[Duration],
    ) -> Result<Self, MetricsError> {
        Ok(Self::with_bounds(registry, release, Bounds::new(bounds)?)?)
    }

    fn with_bounds(registry: Registry, release: &Release, bounds: Bounds) -> Result<Self, prometheus::Error> {
        let build_info = IntGauge::with_opts(
            Opts::new("build_info", "The build that runs; always 1.")
                .const_label("service", release.service())
                .const_label("version", release.version())
                .const_label("revision", release.revision()),
        )?;
        build_info.set(1);
        registry.register(Box::new(build_info))?;

        let http = Arc::new(Http::new(bounds));
        let collector = HttpCollector::new(Arc::clone(&http), release.version())?;
        registry.register(Box::new(collector))?;
        Ok(Self { registry, release: release.clone(), http })
    }

    /// The registry. Families that a canary is judged by need the label `version`, from [`Metrics::release`].
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The build that the metrics belong to.
    pub fn release(&self) -> &Release {
        &self.release
    }

    /// Adds the families of the process, as the Prometheus documentation names them: `process_cpu_seconds_total`,
    /// `process_resident_memory_bytes`, `process_virtual_memory_bytes`, `process_open_fds`, `process_max_fds`,
    /// `process_threads` and `process_start_time_seconds`. They are read from `/proc`, so elsewhere than on Linux there are
    /// none.
    ///
    /// # Errors
    ///
    /// The registry's error, if it has families of these names.
    pub fn register_process(&self) -> Result<(), prometheus::Error> {
        process::register(&self.registry)
    }

    /// The layer that counts requests. All layers of one `Metrics` count into the same series, so a request must pass only
    /// one of them.
    pub fn layer(&self) -> MetricsLayer {
        MetricsLayer { http: Arc::clone(&self.http) }
    }

    /// Creates the series of a route before its first request, so that a canary without requests has them. `route` is
    /// written as in the router: `/orders/{id}`.
    ///
    /// With `POST` and `/package.Service/Method`, the calls of a gRPC method have a route of their own. Without a declaration
    /// they count under their service, because a client can invent names of methods.
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

    /// `GET /metrics` for the admin listener, in the text format of Prometheus, or in OpenMetrics if the client prefers it, as
    /// Prometheus does. Only OpenMetrics has exemplars: the last request of each bucket of
    /// `http_request_duration_seconds` that came with a sampled `traceparent`. Requests are looked at for their traces from the
    /// first page in OpenMetrics on.
    pub fn router(&self) -> Router {
        let metrics = self.clone();
        let page = move |headers: HeaderMap| async move { metrics.exposition(&headers) };
        Router::new().route("/metrics", get(page))
    }

    fn exposition(&self, headers: &HeaderMap) -> Response {
        let families = self.registry.gather();
        let (kind, page) = if openmetrics::is_preferred(headers) {
            self.http.keep_exemplars();
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
