use std::sync::Arc;

use prometheus::Registry;
use prometheus::proto::MetricType;

use super::Drain;
use super::stage::Stage;
use crate::scrape::Scraped;

impl Drain {
    /// Registers `cutover_drain_stage{stage}`, `cutover_http_connections`, `cutover_http_connections_max` and
    /// `cutover_http_refused_total{reason}`.
    ///
    /// # Errors
    ///
    /// The registry's error, if a drain is already registered.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        let mut scraped = Scraped::default();
        let state = Arc::clone(&self.state);
        let help = "State of the drain: 1 for the present stage, 0 for the others.";
        scraped.gauge("cutover_drain_stage", help, &["stage"], move |samples| {
            let current = state.stages.current();
            for stage in Stage::ALL {
                samples.flag(&[stage.name()], stage == current);
            }
        })?;
        let state = Arc::clone(&self.state);
        let help = "Open connections of the public listeners.";
        scraped.gauge("cutover_http_connections", help, &[], move |samples| {
            let free = state.connections.available_permits();
            samples.value(&[], state.options.max_connections.saturating_sub(free) as f64);
        })?;
        let state = Arc::clone(&self.state);
        let help = "How many connections the public listeners may have.";
        scraped.gauge("cutover_http_connections_max", help, &[], move |samples| {
            samples.value(&[], state.options.max_connections as f64);
        })?;
        let state = Arc::clone(&self.state);
        let help = "Handshakes and HTTP/1 requests that the server refused before the application saw them.";
        let (name, kind) = ("cutover_http_refused_total", MetricType::COUNTER);
        scraped.add(kind, name, help, &["reason"], move |samples| {
            for (reason, count) in state.refusals.counts() {
                samples.value(&[reason], count as f64);
            }
        })?;
        scraped.register(registry)
    }
}
