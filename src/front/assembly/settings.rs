//! Small readers of settings. A bad one becomes a problem in a list, and the next one is read.

use std::net::SocketAddr;
use std::time::Duration;

use prometheus::{IntGauge, Opts};

use crate::drain::{DrainOptions, DrainSecret};
use crate::flags::Flags;
use crate::front::BoxError;
use crate::front::environment::Environment;
use crate::health::{Check, ProbeOutcome};
use crate::metrics::{Metrics, MetricsError};
use crate::release::Release;
use crate::{ConfigError, Problem};

pub(super) fn metrics(
    registry: prometheus::Registry,
    release: &Release,
    buckets: Option<&[Duration]>,
    problems: &mut Vec<Problem>,
) -> Option<Metrics> {
    let Some(buckets) = buckets else {
        return registered(Metrics::in_registry(registry, release), problems);
    };
    match Metrics::with_buckets(registry, release, buckets) {
        Ok(metrics) => Some(metrics),
        Err(MetricsError::Config(error)) => valid(Err(error), problems),
        Err(MetricsError::Registry(error)) => registered(Err(error), problems),
    }
}

/// The value, or `None` and its problems in the list.
pub(super) fn valid<T>(result: Result<T, ConfigError>, problems: &mut Vec<Problem>) -> Option<T> {
    result.map_err(|error| problems.extend(error.problems)).ok()
}

/// The same for what is registered with Prometheus.
pub(super) fn registered<T>(result: Result<T, prometheus::Error>, problems: &mut Vec<Problem>) -> Option<T> {
    result.map_err(|error| problems.push(Problem::new("registry", error.to_string()))).ok()
}

/// The problems of an error, which may have more than one.
pub(super) fn problems_of(field: &'static str, error: BoxError) -> Vec<Problem> {
    match error.downcast::<ConfigError>() {
        Ok(error) => error.problems,
        Err(error) => vec![Problem::new(field, error.to_string())],
    }
}

pub(super) fn address(name: &'static str, port: u16, environment: &mut Environment) -> Option<SocketAddr> {
    let problems = environment.problems.len();
    let address = environment.value(name, "an address", &format!("[::]:{port}"));
    // A wrong address must not select the default.
    if environment.problems.len() > problems {
        return None;
    }
    Some(address.unwrap_or_else(|| SocketAddr::from(([0_u16; 8], port))))
}

pub(super) fn drain_options(own: Option<DrainOptions>, environment: &mut Environment) -> DrainOptions {
    let is_own = own.is_some();
    let mut options = own.unwrap_or_default();
    if !is_own && let Some(grace) = environment.seconds("CUTOVER_GRACE_SECONDS") {
        options.grace = grace;
    }
    if !is_own && let Some(propagation) = environment.seconds("CUTOVER_PROPAGATION_SECONDS") {
        options.propagation = propagation;
    }
    if options.secret.is_none()
        && let Some(secret) = environment.text("CUTOVER_DRAIN_SECRET")
    {
        match DrainSecret::new(&secret) {
            Ok(secret) => options.secret = Some(secret),
            Err(error) => {
                error
                    .problems
                    .into_iter()
                    .for_each(|p| environment.problem("CUTOVER_DRAIN_SECRET", p.problem));
            }
        }
    }
    options
}

/// Pods with the same configuration have the same fingerprint: `count(count by (fingerprint) (cutover_config_info)) > 1`
/// finds drift.
pub(super) fn cutover_config_info(metrics: &Metrics, fingerprint: &str) -> Result<(), prometheus::Error> {
    let gauge = IntGauge::with_opts(
        Opts::new("cutover_config_info", "A fingerprint of the configuration; always 1.")
            .const_label("version", metrics.release().version())
            .const_label("fingerprint", fingerprint),
    )?;
    gauge.set(1);
    metrics.registry().register(Box::new(gauge))
}

/// Only warns: without a flag server the last known state or the defaults are used.
pub(super) fn freshness(flags: Flags) -> Check {
    Check::new("flags", move || {
        let fresh = flags.is_fresh();
        let reason = flags.last_fetch_error().map(|error| format!(": {error}")).unwrap_or_default();
        async move {
            Ok::<_, std::convert::Infallible>(match fresh {
                true => ProbeOutcome::Pass,
                false => ProbeOutcome::Warn(format!("the flag server was not reached lately{reason}")),
            })
        }
    })
}
