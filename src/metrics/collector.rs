use std::collections::HashMap;
use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{LabelPair, MetricFamily, MetricType};

use super::http::Http;
use super::labels::{Abort, METHODS};
use super::series::{BUCKETS, Exemplar};
use crate::scrape::{counter, family_of, gauge, histogram};

/// The family whose buckets have exemplars.
pub(super) const DURATIONS: &str = "http_request_duration_seconds";

/// Name, help, type and labels (in alphabetical order) of each family.
const FAMILIES: [(&str, &str, MetricType, &[&str]); 5] = [
    (
        "http_requests_total",
        "Requests whose response body has ended.",
        MetricType::COUNTER,
        &["method", "route", "status", "version"],
    ),
    (
        DURATIONS,
        "Time from the request to the end of its response body.",
        MetricType::HISTOGRAM,
        &["method", "route", "status", "version"],
    ),
    (
        "http_request_first_byte_seconds",
        "Time from the request to the head of its response.",
        MetricType::HISTOGRAM,
        &["method", "route", "version"],
    ),
    (
        "http_requests_aborted_total",
        "Requests whose response did not reach its end, by reason.",
        MetricType::COUNTER,
        &["method", "reason", "route", "version"],
    ),
    (
        "http_requests_in_flight",
        "Requests whose response body has not ended.",
        MetricType::GAUGE,
        &["version"],
    ),
];

/// Shows the sharded series of [`Http`] to a Prometheus registry.
pub(super) struct HttpCollector {
    http: Arc<Http>,
    version: String,
    descriptions: Vec<Desc>,
}

impl HttpCollector {
    pub(super) fn new(http: Arc<Http>, version: &str) -> prometheus::Result<Self> {
        let descriptions = FAMILIES
            .iter()
            .map(|(name, help, _, labels)| {
                let labels = labels.iter().map(|label| (*label).to_owned()).collect();
                Desc::new((*name).into(), (*help).into(), labels, HashMap::new())
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { http, version: version.to_owned(), descriptions })
    }
}

impl Collector for HttpCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let (version, bounds) = (self.version.as_str(), &*self.http.bounds);
        let (mut counts, mut durations, mut first_bytes) = (Vec::new(), Vec::new(), Vec::new());
        let (mut aborts, mut in_flight) = (Vec::new(), 0);
        for route in self.http.routes() {
            let mut ended = 0;
            for (index, snapshot) in route.methods() {
                let method = METHODS[index];
                for (status, durations_of) in &snapshot.statuses {
                    let values = [method, &route.name, &status.to_string(), version];
                    ended += durations_of.count();
                    counts.push(counter(FAMILIES[0].3, &values, durations_of.count() as f64));
                    durations.push(histogram(FAMILIES[1].3, &values, &durations_of.buckets(bounds)));
                }
                let values = [method, &route.name, version];
                first_bytes.push(histogram(FAMILIES[2].3, &values, &snapshot.first_byte.buckets(bounds)));
                for (abort, count) in Abort::ALL.into_iter().zip(snapshot.aborts) {
                    let values = [method, abort.reason(), &route.name, version];
                    aborts.push(counter(FAMILIES[3].3, &values, count as f64));
                }
            }
            in_flight += route.begun().saturating_sub(ended);
        }
        let in_flight = gauge(FAMILIES[4].3, &[version], in_flight as f64);

        FAMILIES
            .iter()
            .zip([counts, durations, first_bytes, aborts, vec![in_flight]])
            .map(|((name, help, kind, _), metrics)| family_of(name, help, *kind, metrics))
            .collect()
    }
}

/// The exemplars of [`DURATIONS`]. The types of the client library can't hold them.
pub(super) struct Exemplars(HashMap<[String; 3], [Option<Exemplar>; BUCKETS]>);

impl Exemplars {
    pub(super) fn of(http: &Http) -> Self {
        let mut all = HashMap::new();
        for route in http.routes() {
            for (index, snapshot) in route.methods() {
                for (status, durations) in snapshot.statuses {
                    let key = [METHODS[index].to_owned(), route.name.to_string(), status.to_string()];
                    all.insert(key, durations.exemplars);
                }
            }
        }
        Self(all)
    }

    /// The exemplars of the series with these labels.
    pub(super) fn get(&self, labels: &[LabelPair]) -> Option<&[Option<Exemplar>; BUCKETS]> {
        let value = |name: &str| labels.iter().find(|l| l.name() == name).map(|l| l.value().to_owned());
        self.0.get(&[value("method")?, value("route")?, value("status")?])
    }
}
