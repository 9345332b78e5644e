//! Latency of each side and shadow reads, from Prometheus.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cutover::console::{SideCalls, SideNumbers, SideSource};
use futures_util::FutureExt;
use futures_util::future::try_join_all;
use serde_json::Value;

use crate::canary::prometheus::{Prometheus, QueryError, quoted};

const TIME_LIMIT: Duration = Duration::from_secs(2);

/// Where the page gets the numbers of both sides.
///
/// # Errors
///
/// Why the address cannot be used, without its password.
pub(super) fn source(url: &str, matchers: Vec<String>) -> Result<SideSource, String> {
    let prometheus = Arc::new(Prometheus::to_show(url, matchers, TIME_LIMIT)?);
    Ok(Arc::new(move |migration| {
        let prometheus = Arc::clone(&prometheus);
        async move { read(&prometheus, &migration).await.map_err(|error| error.to_string()) }.boxed()
    }))
}

async fn read(prometheus: &Prometheus, migration: &str) -> Result<SideNumbers, QueryError> {
    let matchers =
        [&prometheus.matchers[..], &[format!("migration={}", quoted(migration))]].concat().join(",");
    let calls = |suffix: &str| format!("cutover_side_duration_seconds_{suffix}{{{matchers}}}[5m]");
    let quantile = |share: f64| {
        let buckets = calls("bucket");
        format!("histogram_quantile({share}, sum by (operation, side, le) (rate({buckets})))")
    };
    let queries = [
        format!("sum by (outcome) (increase(cutover_migration_shadow_reads_total{{{matchers}}}[5m]))"),
        format!("sum by (operation, side) (rate({}))", calls("count")),
        format!("sum by (operation, side) (rate(cutover_side_failures_total{{{matchers}}}[5m]))"),
        quantile(0.5),
        quantile(0.99),
    ];
    let answers = try_join_all(queries.iter().map(|query| prometheus.vector(query))).await?;
    let [shadow, rates, failures, medians, p99s] = &answers[..] else { return Ok(SideNumbers::default()) };
    let shadow_reads = shadow.iter().map(|one| (label(one, "outcome"), value(one))).collect();
    let by_side = |series: &[Value]| -> BTreeMap<(String, String), f64> {
        series.iter().map(|one| ((label(one, "operation"), label(one, "side")), value(one))).collect()
    };
    let (failures, medians, p99s) = (by_side(failures), by_side(medians), by_side(p99s));
    let calls = by_side(rates).into_iter().filter(|(_, rate)| *rate > 0.0).map(|(key, rate)| SideCalls {
        rate,
        failures: failures.get(&key).copied().unwrap_or(0.0),
        median: medians.get(&key).copied().unwrap_or(f64::NAN),
        p99: p99s.get(&key).copied().unwrap_or(f64::NAN),
        operation: key.0,
        side: key.1,
    });
    Ok(SideNumbers { shadow_reads, calls: calls.collect() })
}

fn label(series: &Value, name: &str) -> String {
    series["metric"][name].as_str().unwrap_or_default().to_owned()
}

/// Not a number if there is none.
fn value(series: &Value) -> f64 {
    series["value"][1].as_str().and_then(|text| text.parse().ok()).unwrap_or(f64::NAN)
}
