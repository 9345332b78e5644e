//! What the server is told: who asks, and what was decided.

use std::collections::HashMap;

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Map, Value, json};
use unleash_yggdrasil::{CORE_VERSION, KNOWN_STRATEGIES, SUPPORTED_SPEC_VERSION};

use super::options::UnleashOptions;
use super::transport::SDK;
use crate::flags::counters::{Sharded, Tally};

/// Who reports, and how far the server has been told.
pub(super) struct Reporter {
    app_name: String,
    instance_id: String,
    connection_id: String,
    interval_ms: u64,
    since: DateTime<Utc>,
    told: Told,
}

/// Sums by flag, and there by `yes`, `no` or variant.
type Told = HashMap<String, HashMap<String, u64>>;

/// What there is to tell, and what will have been told with it.
pub(super) struct Report {
    pub(super) content: Value,
    told: Told,
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
            told: HashMap::new(),
        }
    }

    pub(super) fn registration(&self) -> Value {
        self.signed(json!({
            "started": rfc3339(self.since),
            "interval": self.interval_ms,
            "strategies": KNOWN_STRATEGIES,
        }))
    }

    /// What was decided since the server was last told; `None` if nothing was.
    pub(super) fn report(&self, tally: &Tally) -> Option<Report> {
        let mut told = Told::new();
        let mut toggles = Map::new();
        tally.0.for_each(|flag, series| {
            let before = self.told.get(flag);
            let mut sums = HashMap::new();
            let mut news = |key: String, count: &Sharded| {
                let sum = count.sum();
                let news = sum - before.and_then(|before| before.get(&key)).copied().unwrap_or(0).min(sum);
                sums.insert(key, sum);
                news
            };
            let yes = news("yes".to_owned(), &series.enabled);
            let no = news("no".to_owned(), &series.disabled);
            let mut variants = Map::new();
            series.variants.for_each(|name, count| {
                let news = news(format!("variant {name}"), count);
                if news > 0 {
                    variants.insert(name.to_owned(), news.into());
                }
            });
            if yes + no > 0 || !variants.is_empty() {
                toggles.insert(flag.to_owned(), json!({ "yes": yes, "no": no, "variants": variants }));
            }
            told.insert(flag.to_owned(), sums);
        });
        let until = Utc::now();
        let bucket = json!({ "start": rfc3339(self.since), "stop": rfc3339(until), "toggles": toggles });
        let content = self.signed(json!({ "bucket": bucket }));
        (!toggles.is_empty()).then_some(Report { content, told, until })
    }

    /// The server took it. What was not taken is in the next report again.
    pub(super) fn taken(&mut self, report: Report) {
        self.told = report.told;
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
