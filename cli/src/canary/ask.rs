//! What Prometheus knows about a version.

use std::time::Duration;

use ::http::Method;
use futures_util::future::try_join_all;
use serde_json::Value;
use url::Url;

use super::judge::Observed;
use crate::http::Http;

/// Where to ask and for what.
pub(super) struct Source {
    http: Http,
    server: Url,
    /// Label matchers that every query has, such as `service="payments"`.
    matchers: Vec<String>,
    label: String,
    errors: String,
    stale_after: Duration,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum AdminError {
    /// Nobody answers there, or not in time.
    #[error("Prometheus at {server} can't be asked: {problem}")]
    Unreachable { server: Url, problem: String },
    /// It answers that it won't.
    #[error("Prometheus refuses the query {query}: {problem}")]
    Refused { query: String, problem: String },
    /// It answers, but has no usable data.
    #[error("{0}")]
    Missing(String),
}

impl Source {
    pub(super) fn new(
        server: Url,
        matchers: Vec<String>,
        label: &str,
        errors: &str,
        stale_after: Duration,
    ) -> std::io::Result<Self> {
        let http = Http::new(&server, Duration::from_secs(10))?;
        let (label, errors) = (label.to_owned(), errors.to_owned());
        Ok(Self { http, server, matchers, label, errors, stale_after })
    }

    /// What the version did in the last `window`. A series that starts anew within it is no error: `increase` knows of
    /// restarts.
    pub(super) async fn observe(&self, version: &str, window: Duration) -> Result<Observed, AdminError> {
        let errors = format!("status=~{}", quoted(&self.errors));
        let total =
            |matchers: &[&str]| grown("", &self.series("http_requests_total", version, matchers), window);
        let duration = |suffix: &str, by: &str| {
            let name = format!("http_request_duration_seconds{suffix}");
            grown(by, &self.series(&name, version, &[]), window)
        };
        let age = format!("min(time() - timestamp({}))", self.series("http_requests_total", version, &[]));
        let queries = [
            age,
            total(&[]),
            total(&[&errors]),
            total(&[r#"status="499""#]),
            duration("_sum", ""),
            duration("_bucket", "by (le)"),
        ];
        let answers = try_join_all(queries.iter().map(|query| self.ask(query))).await?;
        let one = |index: usize| answers[index].first().map(|series| series.1);
        let missing = |what: &str| {
            let pair = format!("{}={}", self.label, quoted(version));
            AdminError::Missing(format!("Prometheus has no {what} for {pair} within {} s", window.as_secs()))
        };
        let age = one(0).ok_or_else(|| missing("http_requests_total"))?;
        if age.is_nan() || age > self.stale_after.as_secs_f64() {
            return Err(AdminError::Missing(format!(
                "the newest sample for {}={} is {age:.0} s old: it is not scraped any more",
                self.label,
                quoted(version)
            )));
        }
        let mut buckets = answers[5].clone();
        buckets.sort_by(|low, high| low.0.total_cmp(&high.0));
        Ok(Observed {
            requests: one(1).ok_or_else(|| missing("http_requests_total"))?,
            // Where there were none, there may be no series.
            failed: one(2).unwrap_or(0.0),
            given_up: one(3).unwrap_or(0.0),
            seconds: one(4).ok_or_else(|| missing("http_request_duration_seconds_sum"))?,
            buckets,
        })
    }

    fn series(&self, name: &str, version: &str, matchers: &[&str]) -> String {
        let version = format!("{}={}", self.label, quoted(version));
        let all: Vec<&str> = [&*version]
            .into_iter()
            .chain(self.matchers.iter().map(|m| &**m))
            .chain(matchers.iter().copied())
            .collect();
        format!("{name}{{{}}}", all.join(","))
    }

    /// The answer's values, each with its label `le`, or 0.
    async fn ask(&self, query: &str) -> Result<Vec<(f64, f64)>, AdminError> {
        let unreachable = |problem: String| AdminError::Unreachable { server: self.server.clone(), problem };
        let mut url = self.server.join("api/v1/query").map_err(|error| unreachable(error.to_string()))?;
        url.query_pairs_mut().append_pair("query", query);
        let (status, body) = self.http.send(Method::GET, &url, None).await.map_err(unreachable)?;
        let answer: Value = serde_json::from_slice(&body)
            .map_err(|_| unreachable(format!("the answer ({status}) is not Prometheus's")))?;
        if answer["status"] != "success" {
            let problem = answer["error"].as_str().map_or_else(|| status.to_string(), str::to_owned);
            return Err(AdminError::Refused { query: query.to_owned(), problem });
        }
        let series = answer["data"]["result"].as_array().into_iter().flatten();
        series
            .map(value)
            .collect::<Option<_>>()
            .ok_or_else(|| unreachable("the answer has another shape than an instant vector".into()))
    }
}

/// By how much counters grew within the window.
///
/// `increase` takes a series' first sample for where it began. One that appears within the window began at zero: the
/// first failure of a kind appears as a series of its own, at one or more.
fn grown(by: &str, series: &str, window: Duration) -> String {
    let window = format!("{}ms", window.as_millis());
    let increase = format!("increase({series}[{window}])");
    let first = format!("(min_over_time({series}[{window}]) unless {series} offset {window})");
    format!("sum {by} (({increase} + {first}) or {increase} or {first})")
}

/// Prometheus writes `NaN`, `+Inf` and `-Inf` as Rust reads them.
fn value(series: &Value) -> Option<(f64, f64)> {
    let bound = series["metric"]["le"].as_str().map_or(Some(0.0), |bound| bound.parse().ok())?;
    Some((bound, series["value"][1].as_str()?.parse().ok()?))
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n"))
}
