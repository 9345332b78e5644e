//! Counts and latencies of the load, by stage.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

/// What happens in the fleet while a request runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// The first requests, with cold caches: counted and judged, but not timed.
    #[default]
    Warm,
    /// Nothing. The baseline for latency.
    Quiet,
    /// Instances are replaced.
    Deploy,
    /// The migration moves.
    Migrate,
}

/// Outcomes of all requests.
#[derive(Default)]
pub(crate) struct Stats(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    stage: Stage,
    counts: Counts,
    by_stage: BTreeMap<Stage, Latency>,
    /// A histogram per second, the newest at the back.
    recent: VecDeque<Latency>,
    failed: Vec<Failed>,
}

/// A failed request: its kind, when it was due, and when it failed.
#[derive(Clone, Debug)]
pub(crate) struct Failed {
    pub(crate) what: String,
    pub(crate) due: Instant,
    pub(crate) at: Instant,
}

/// Totals since the load began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) requests: u64,
    pub(crate) failed: u64,
    /// Requests that were due but not sent, because too many were unanswered. They count as failed, too.
    pub(crate) dropped: u64,
    pub(crate) sessions_lost: u64,
    /// Payments by flow, as the flag selected it.
    pub(crate) paid_by_new_flow: u64,
    pub(crate) paid_by_legacy_flow: u64,
    /// `PUT payment: 503` → how many.
    pub(crate) failures: BTreeMap<String, u64>,
}

impl Stats {
    /// Seconds that the screen's percentiles cover.
    const RECENT: usize = 5;

    pub(crate) fn enter(&self, stage: Stage) {
        self.lock().stage = stage;
    }

    /// `latency` is measured from when the request was due.
    pub(crate) fn succeeded(&self, latency: Duration) {
        let mut inner = self.lock();
        inner.counts.requests += 1;
        inner.time(latency);
    }

    /// `what` is the kind of failure. Each kind is a row of the report, so there should be few.
    pub(crate) fn failed(&self, what: String, latency: Duration) {
        let mut inner = self.lock();
        inner.counts.requests += 1;
        inner.fail(what, latency);
        inner.time(latency);
    }

    pub(crate) fn dropped(&self) {
        let mut inner = self.lock();
        inner.counts.requests += 1;
        inner.counts.dropped += 1;
        inner.fail("not sent: too many unanswered requests".to_owned(), Duration::ZERO);
    }

    pub(crate) fn session_lost(&self) {
        self.lock().counts.sessions_lost += 1;
    }

    pub(crate) fn paid(&self, by_new_flow: bool) {
        let counts = &mut self.lock().counts;
        match by_new_flow {
            true => counts.paid_by_new_flow += 1,
            false => counts.paid_by_legacy_flow += 1,
        }
    }

    /// Starts the next second of the screen's percentiles. Call it once per second.
    pub(crate) fn second(&self) {
        let mut inner = self.lock();
        inner.recent.push_back(Latency::default());
        while inner.recent.len() > Self::RECENT {
            inner.recent.pop_front();
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        self.lock().counts.clone()
    }

    /// All failed requests so far.
    pub(crate) fn failed_requests(&self) -> Vec<Failed> {
        self.lock().failed.clone()
    }

    /// Latency of the last few seconds.
    pub(crate) fn recent(&self) -> Latency {
        Latency::sum(&self.lock().recent)
    }

    /// Latency of all requests that ended in one of these stages.
    pub(crate) fn of(&self, stages: &[Stage]) -> Latency {
        let inner = self.lock();
        Latency::sum(stages.iter().filter_map(|stage| inner.by_stage.get(stage)))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn fail(&mut self, what: String, latency: Duration) {
        self.counts.failed += 1;
        let at = Instant::now();
        self.failed.push(Failed { what: what.clone(), due: at.checked_sub(latency).unwrap_or(at), at });
        *self.counts.failures.entry(what).or_default() += 1;
    }

    fn time(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let stage = self.stage;
        self.by_stage.entry(stage).or_default().0.saturating_record(micros);
        if let Some(second) = self.recent.back_mut() {
            second.0.saturating_record(micros);
        }
    }
}

/// A histogram in microseconds, with three significant digits.
#[derive(Clone)]
pub(crate) struct Latency(Histogram<u64>);

impl Default for Latency {
    fn default() -> Self {
        #[expect(clippy::expect_used, reason = "the bounds are constants")]
        Self(Histogram::new_with_bounds(1, 600_000_000, 3).expect("valid bounds"))
    }
}

impl Latency {
    /// Milliseconds; 0 if nothing was timed.
    pub(crate) fn ms(&self, percentile: f64) -> f64 {
        self.0.value_at_percentile(percentile) as f64 / 1e3
    }

    pub(crate) fn max_ms(&self) -> f64 {
        self.0.max() as f64 / 1e3
    }

    fn sum<'a>(parts: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut sum = Self::default();
        for part in parts {
            // Adding cannot fail: all histograms have the same bounds.
            let _ = sum.0.add(&part.0);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_timed_separately_and_failures_by_kind() {
        let stats = Stats::default();
        stats.enter(Stage::Quiet);
        (0..100).for_each(|_| stats.succeeded(Duration::from_millis(2)));
        stats.enter(Stage::Deploy);
        stats.failed("GET order: 503".to_owned(), Duration::from_millis(50));
        stats.failed("GET order: 503".to_owned(), Duration::from_millis(50));
        stats.dropped();
        let counts = stats.counts();
        assert_eq!((counts.requests, counts.failed, counts.dropped), (103, 3, 1));
        assert_eq!(counts.failures["GET order: 503"], 2);
        assert_eq!(stats.of(&[Stage::Quiet]).ms(99.0).round(), 2.0);
        assert_eq!(stats.of(&[Stage::Deploy, Stage::Migrate]).ms(99.0).round(), 50.0);
        assert_eq!(stats.of(&[Stage::Migrate]).max_ms(), 0.0);
    }

    #[test]
    fn recent_percentiles_forget_old_seconds() {
        let stats = Stats::default();
        stats.second();
        stats.succeeded(Duration::from_secs(1));
        assert_eq!(stats.recent().ms(50.0).round(), 1000.0);
        (0..Stats::RECENT).for_each(|_| stats.second());
        stats.succeeded(Duration::from_millis(1));
        assert_eq!(stats.recent().ms(99.0).round(), 1.0);
    }
}
