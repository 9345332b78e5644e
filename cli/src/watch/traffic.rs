//! Requests, errors and latency of the service, from Prometheus.

use std::time::{Duration, Instant};

use super::{Series, push};
use crate::canary::prometheus::Prometheus;

/// Prometheus has a new sample only after each scrape.
const POLL: Duration = Duration::from_secs(5);
const TIME_LIMIT: Duration = Duration::from_secs(2);

/// A number over time.
#[derive(Clone)]
pub(super) struct Sample {
    pub(super) what: &'static str,
    pub(super) unit: &'static str,
    pub(super) now: Option<f64>,
    pub(super) series: Series,
}

pub(super) struct Traffic {
    prometheus: Prometheus,
    samples: Vec<(String, Sample)>,
    read: Option<(Instant, Result<(), String>)>,
}

impl Traffic {
    /// # Errors
    ///
    /// Why the address cannot be used, without its password.
    pub(super) fn new(url: &str, matchers: Vec<String>) -> Result<Self, String> {
        let prometheus = Prometheus::to_show(url, matchers.clone(), TIME_LIMIT)?;
        let all = matchers.join(",");
        let errors = [&matchers[..], &["status=~\"5..\"".to_owned()]].concat().join(",");
        let sample = |what, unit| Sample { what, unit, now: None, series: Series::new() };
        let samples = vec![
            (format!("sum(rate(http_requests_total{{{all}}}[1m]))"), sample("requests", "/s")),
            (format!("sum(rate(http_requests_total{{{errors}}}[1m])) or vector(0)"), sample("errors", "/s")),
            (
                format!(
                    "1000 * histogram_quantile(0.99, sum by (le) (rate(http_request_duration_seconds_bucket{{{all}}}[1m])))"
                ),
                sample("99th percentile", " ms"),
            ),
        ];
        Ok(Self { prometheus, samples, read: None })
    }

    /// The samples so far, or why there are none.
    pub(super) async fn read(&mut self) -> Result<Vec<Sample>, String> {
        if self.read.as_ref().is_none_or(|(at, _)| at.elapsed() >= POLL) {
            let result = self.query().await;
            self.read = Some((Instant::now(), result));
        }
        match &self.read {
            Some((_, Err(problem))) => Err(problem.clone()),
            _ => Ok(self.samples.iter().map(|(_, sample)| sample.clone()).collect()),
        }
    }

    async fn query(&mut self) -> Result<(), String> {
        let prometheus = &self.prometheus;
        let queries = self.samples.iter().map(|(query, _)| prometheus.query(query));
        let answers = futures_util::future::try_join_all(queries).await.map_err(|error| error.to_string())?;
        for ((_, sample), answer) in self.samples.iter_mut().zip(answers) {
            sample.now = answer.first().map(|(_, value)| *value).filter(|value| value.is_finite());
            // A sparkline has whole numbers, and errors are few.
            push(&mut sample.series, sample.now.unwrap_or(0.0) * 100.0);
        }
        Ok(())
    }
}
