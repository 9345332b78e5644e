use prometheus::{Histogram, HistogramOpts, IntCounterVec, IntGauge, Opts};
use tokio::time::Instant;

use crate::metrics::Metrics;

/// Reasons for which a request was refused.
pub(super) const REFUSED_TIMEOUT: &str = "timeout";
pub(super) const REFUSED_QUEUE_FULL: &str = "queue_full";

/// The metrics `cutover_pool_wait_seconds`, `cutover_pool_waiters` and `cutover_pool_refused_total` of one pool of any kind.
/// `sqlx` has none of them.
#[derive(Debug, Clone)]
pub struct PoolWaitMetrics {
    seconds: Histogram,
    waiters: IntGauge,
    refused: IntCounterVec,
}

impl PoolWaitMetrics {
    /// Registers the families for the pool of this name, with the labels `pool` and `version`.
    ///
    /// # Errors
    ///
    /// The registry's error, if a pool of this name is already registered.
    pub fn register(metrics: &Metrics, pool: &str) -> Result<Self, prometheus::Error> {
        let labels =
            |opts: Opts| opts.const_label("pool", pool).const_label("version", metrics.release().version());
        let help = "Time that requests waited for a connection or for admission to its pool.";
        let mut opts = HistogramOpts::new("cutover_pool_wait_seconds", help)
            .buckets(vec![0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0]);
        opts.common_opts = labels(opts.common_opts);
        let seconds = Histogram::with_opts(opts)?;
        let waiters = IntGauge::with_opts(labels(Opts::new(
            "cutover_pool_waiters",
            "Requests that wait for a connection now.",
        )))?;
        let refused = IntCounterVec::new(
            labels(Opts::new(
                "cutover_pool_refused_total",
                "Requests that admission refused, because no connection became free in time or too many waited.",
            )),
            &["reason"],
        )?;
        for reason in [REFUSED_TIMEOUT, REFUSED_QUEUE_FULL] {
            refused.with_label_values(&[reason]);
        }
        metrics.registry().register(Box::new(refused.clone()))?;
        metrics.registry().register(Box::new(seconds.clone()))?;
        metrics.registry().register(Box::new(waiters.clone()))?;
        Ok(Self { seconds, waiters, refused })
    }

    /// Measures the time that `acquire` takes: `waits.measure(pool.acquire())`, `waits.measure(pool.get())`.
    ///
    /// # Cancel safety
    ///
    /// As that of `acquire`. An abandoned wait is counted as well.
    pub async fn measure<F: Future>(&self, acquire: F) -> F::Output {
        let _waiting = self.begin();
        acquire.await
    }

    pub(super) fn begin(&self) -> Waiting {
        self.waiters.inc();
        Waiting { waits: self.clone(), since: Instant::now() }
    }

    pub(super) fn refused(&self, reason: &str) {
        self.refused.with_label_values(&[reason]).inc();
    }

    /// Records an admission without a wait.
    pub(super) fn none(&self) {
        self.seconds.observe(0.0);
    }
}

/// A wait; dropping it records its length.
pub(super) struct Waiting {
    waits: PoolWaitMetrics,
    since: Instant,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.waits.waiters.dec();
        self.waits.seconds.observe(self.since.elapsed().as_secs_f64());
    }
}
