//! Requests that register this instance and report its decision counts.

use std::collections::HashMap;

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Map, Value, json};
use unleash_yggdrasil::{CORE_VERSION, KNOWN_STRATEGIES, SUPPORTED_SPEC_VERSION};

use super::options::UnleashOptions;
use super::transport::SDK;
use crate::flags::counters::{Sharded, Tally};

/// The identity of this instance, and the counts that the server has.
pub(super) struct Reporter {
    app_name: String,
    instance_id: String,
    connection_id: String,
    interval_ms: u64,
    since: DateTime<Utc>,
    reported: Reported,
}

/// Sums by flag, and per flag by `yes`, `no` or variant.
type Reported = HashMap<String, HashMap<String, u64>>;

/// A report, and the counts that the server has after it accepts the report.
pub(super) struct Report {
    pub(super) content: Value,
    reported: Reported,
    until: DateTime<Utc>,
}

impl Reporter {
    pub(super) fn new(options: &UnleashOptions, connection_id: String) -> Self {
        Self {
            app_name: options.app_name.clone(),
            instance_id: options.instance_id.clone(),
            connection_id,
            interval_ms: u64::try_from(options.interval.as_millis()).unwrap_or(u64::MAX),
            since: Utc::now(),
            reported: HashMap::new(),
        }
    }

    pub(super) fn registration(&self) -> Value {
        self.signed(json!({
            "started": rfc3339(self.since),
            "interval": self.interval_ms,
            "strategies": KNOWN_STRATEGIES,
        }))
    }

    /// The decisions since the last accepted report; `None` if there are none.
    pub(super) fn report(&self, tally: &Tally) -> Option<Report> {
        let mut reported = Reported::new();
        let mut toggles = Map::new();
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
            let mut variants = Map::new();
            series.variants.for_each(|name, count| {
                let chosen = since_last(format!("variant {name}"), count);
                if chosen > 0 {
                    variants.insert(name.to_owned(), chosen.into());
                }
            });
            if yes + no > 0 || !variants.is_empty() {
                toggles.insert(flag.to_owned(), json!({ "yes": yes, "no": no, "variants": variants }));
            }
            reported.insert(flag.to_owned(), sums);
        });
        let until = Utc::now();
        let bucket = json!({ "start": rfc3339(self.since), "stop": rfc3339(until), "toggles": toggles });
        let content = self.signed(json!({ "bucket": bucket }));
        (!toggles.is_empty()).then_some(Report { content, reported, until })
    }

    /// Records that the server accepted a report. Counts of a refused report are part of the next one.
    pub(super) fn accepted(&mut self, report: Report) {
        self.reported = report.reported;
        self.since = report.until;
    }

    fn signed(&self, mut content: Value) -> Value {
        for (key, text) in [
            ("appName", self.app_name.as_str()),
            ("instanceId", &self.instance_id),
            ("connectionId", &self.connection_id),
            ("sdkVersion", SDK),
            ("platformName", "rust"),
            ("yggdrasilVersion", CORE_VERSION),
            ("specVersion", SUPPORTED_SPEC_VERSION),
        ] {
            content[key] = text.into();
        }
        content
    }
}

fn rfc3339(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}
