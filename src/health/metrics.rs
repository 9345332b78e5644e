use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;

use super::Health;
use super::component::Status;
use super::shared::Shared;
use crate::scrape::Scraped;

impl Health {
    /// Registers `cutover_ready`, `cutover_check_status{check,status}` and `cutover_check_duration_seconds{check}`.
    ///
    /// # Errors
    ///
    /// The registry's error, if a health is already registered.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        let mut scraped = Scraped::default();
        // A clone of the health would keep its background tasks alive for as long as the registry lives.
        let shared = Arc::clone(&self.shared);
        let help = "1 while this instance should receive requests, otherwise 0.";
        scraped.gauge("cutover_ready", help, &[], move |samples| samples.flag(&[], shared.is_ready()))?;
        let shared = Arc::clone(&self.shared);
        let help =
            "State of each check, signal and startup step: 1 for the present status, 0 for the others.";
        scraped.gauge("cutover_check_status", help, &["check", "status"], move |samples| {
            for (name, (status, _)) in by_name(&shared) {
                for each in [Status::Pass, Status::Warn, Status::Fail] {
                    samples.flag(&[&name, each.as_str()], each == status);
                }
            }
        })?;
        let shared = Arc::clone(&self.shared);
        let help = "Duration of the last probe of each check.";
        scraped.gauge("cutover_check_duration_seconds", help, &["check"], move |samples| {
            for (name, (_, took)) in by_name(&shared) {
                if let Some(took) = took {
                    samples.value(&[&name], took.as_secs_f64());
                }
            }
        })?;
        scraped.register(registry)
    }
}

/// The worst status and the longest probe of each name: two components may have the same.
fn by_name(shared: &Shared) -> BTreeMap<Arc<str>, (Status, Option<Duration>)> {
    let mut all = BTreeMap::new();
    for component in shared.components().iter() {
        let state = component.shown();
        let entry = all.entry(Arc::clone(&component.name)).or_insert((Status::Pass, None));
        *entry = (entry.0.max(state.status), entry.1.max(state.took));
    }
    all
}
