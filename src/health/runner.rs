use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::check::{Check, ProbeOutcome};
use super::component::{Component, State, Status};
use super::shared::Shared;

/// The longest pause between probes of a dependency that has never passed.
const STARTUP_INTERVAL: Duration = Duration::from_secs(1);

/// Probes until it is dropped. There is one loop per check, so probes of one check never overlap.
pub(super) async fn run(check: Check, component: Arc<Component>, shared: Arc<Shared>) {
    let mut judge = Judge::new(&check);
    loop {
        let started = Instant::now();
        let outcome = check.run_probe().await;
        let status = judge.judge(&outcome, Instant::now());
        let output = match &outcome {
            Ok(ProbeOutcome::Pass) if status == Status::Fail => Some("passed, but not often enough yet"),
            Ok(ProbeOutcome::Pass) => None,
            Ok(ProbeOutcome::Warn(text)) | Err(text) => Some(text.as_str()),
        };
        shared.set(&component, State::new(status, output, Some(started.elapsed())));
        sleep(if component.reached() { check.interval } else { check.interval.min(STARTUP_INTERVAL) }).await;
    }
}

/// Turns single outcomes into a status that does not flap.
struct Judge {
    failures_needed: u32,
    failing_for: Duration,
    successes_needed: u32,
    failing: bool,
    failures: u32,
    failures_since: Option<Instant>,
    successes: u32,
}

impl Judge {
    fn new(check: &Check) -> Self {
        Self {
            failures_needed: check.failures,
            failing_for: check.failing_for,
            successes_needed: check.successes,
            failing: true,
            failures: 0,
            failures_since: None,
            successes: 0,
        }
    }

    fn judge(&mut self, outcome: &Result<ProbeOutcome, String>, now: Instant) -> Status {
        if let Ok(outcome) = outcome {
            self.failures = 0;
            self.failures_since = None;
            self.successes = self.successes.saturating_add(1);
            if self.successes >= self.successes_needed {
                self.failing = false;
            }
            return match (self.failing, outcome) {
                (true, _) => Status::Fail,
                (false, ProbeOutcome::Pass) => Status::Pass,
                (false, ProbeOutcome::Warn(_)) => Status::Warn,
            };
        }
        self.successes = 0;
        self.failures = self.failures.saturating_add(1);
        let since = *self.failures_since.get_or_insert(now);
        if self.failures >= self.failures_needed && now.duration_since(since) >= self.failing_for {
            self.failing = true;
        }
        // A failure below the thresholds is shown but does not affect readiness.
        if self.failing { Status::Fail } else { Status::Warn }
    }
}
