//! Reports of decision counts to the server.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde::Serialize;
use unleash_api_client::api::{MetricsBucket, ToggleMetrics};
use unleash_yggdrasil::{CORE_VERSION, SUPPORTED_SPEC_VERSION};

use super::options::UnleashOptions;
use crate::flags::counters::{Sharded, Tally};

/// The name of this library in reports.
const SDK: &str = concat!("cutover:", env!("CARGO_PKG_VERSION"));

/// The identity of this instance, and the counts that the server has.
pub(super) struct Reporter {
    app_name: String,
    instance_id: String,
    since: DateTime<Utc>,
    reported: Reported,
}

/// Sums by flag, and per flag by `yes`, `no` or variant.
type Reported = HashMap<String, HashMap<String, u64>>;

/// A report, and the counts that the server has after it accepts the report.
pub(super) struct Report {
    bucket: MetricsBucket,
    reported: Reported,
    until: DateTime<Utc>,
}

impl Reporter {
    pub(super) fn new(options: &UnleashOptions) -> Self {
        Self {
            app_name: options.app_name.clone(),
            instance_id: options.instance_id.clone(),
            since: Utc::now(),
            reported: HashMap::new(),
        }
    }

    /// The decisions since the last accepted report; `None` if there are none.
    pub(super) fn report(&self, tally: &Tally) -> Option<Report> {
        let mut reported = Reported::new();
        let mut toggles = HashMap::new();
        tally.0.for_each(|flag, series| {
            let before = self.reported.get(flag);
            let mut sums = HashMap::new();
            let mut since_last = |key: String, count: &Sharded| {
                let sum = count.sum();
                let reported = before.and_then(|before| before.get(&key)).copied().unwrap_or(0);
                sums.insert(key, sum);
                sum - reported.min(sum)
            };
            let yes = since_last("yes".to_owned(), &series.enabled);
            let no = since_last("no".to_owned(), &series.disabled);
            let mut variants = HashMap::new();
            series.variants.for_each(|name, count| {
                let chosen = since_last(format!("variant {name}"), count);
                if chosen > 0 {
                    variants.insert(name.to_owned(), chosen);
                }
            });
            if yes + no > 0 || !variants.is_empty() {
                toggles.insert(flag.to_owned(), ToggleMetrics { yes, no, variants });
            }
            reported.insert(flag.to_owned(), sums);
        });
        let until = Utc::now();
        let bucket = MetricsBucket { start: self.since, stop: until, toggles };
        (!bucket.toggles.is_empty()).then_some(Report { bucket, reported, until })
    }

    /// Records that the server accepted a report. Counts of a refused report are part of the next one.
    pub(super) fn accepted(&mut self, report: Report) {
        self.reported = report.reported;
        self.since = report.until;
    }

    /// What is sent. The client's own type for it cannot be built outside of the client.
    pub(super) fn signed<'a>(&'a self, report: &'a Report, connection_id: &'a str) -> SignedReport<'a> {
        SignedReport {
            app_name: &self.app_name,
            instance_id: &self.instance_id,
            connection_id,
            sdk_version: SDK,
            platform_name: "rust",
            yggdrasil_version: CORE_VERSION,
            spec_version: SUPPORTED_SPEC_VERSION,
            bucket: &report.bucket,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SignedReport<'a> {
    app_name: &'a str,
    instance_id: &'a str,
    connection_id: &'a str,
    sdk_version: &'static str,
    platform_name: &'static str,
    yggdrasil_version: &'static str,
    spec_version: &'static str,
    bucket: &'a MetricsBucket,
}
