use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::{Instant, sleep, timeout};

use super::component::{Component, State};
use super::handle::Shared;
use super::{Check, ProbeOutcome, Status};

/// Longest wait between probes of a dependency that was never reached.
const STARTUP_INTERVAL: Duration = Duration::from_secs(1);

/// Probes for as long as it is polled. One loop per check: a probe can't overtake another.
pub(super) async fn run(check: Check, component: Arc<Component>, shared: Arc<Shared>) {
    let mut judge = Judge::new(&check);
    loop {
        let started = Instant::now();
        let seen = probe(&check).await;
        let status = judge.judge(&seen, Instant::now());
        let output = match &seen {
            Ok(ProbeOutcome::Pass) if status == Status::Fail => Some("passed, but not yet often enough"),
            Ok(ProbeOutcome::Pass) => None,
            Ok(ProbeOutcome::Warn(text)) | Err(text) => Some(text.as_str()),
        };
        shared.set(&component, State::new(status, output, Some(started.elapsed())));
        sleep(if component.reached() { check.interval } else { check.interval.min(STARTUP_INTERVAL) }).await;
    }
}

pub(super) async fn probe(check: &Check) -> Result<ProbeOutcome, String> {
    // The closure itself is called inside, so that its panics are caught too.
    let probe = AssertUnwindSafe(async { (check.probe)().await }).catch_unwind();
    match timeout(check.time_limit, probe).await {
        Ok(Ok(Ok(observed))) => Ok(observed),
        Ok(Ok(Err(error))) => Err(with_causes(&*error)),
        Ok(Err(panic)) => Err(format!("the probe panicked: {}", panic_text(&*panic))),
        Err(_) => Err(format!("no answer within {:?}", check.time_limit)),
    }
}

fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text")
}

/// Turns single observations into a state that doesn't flap.
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

    fn judge(&mut self, seen: &Result<ProbeOutcome, String>, now: Instant) -> Status {
        if let Ok(observed) = seen {
            self.failures = 0;
            self.failures_since = None;
            self.successes = self.successes.saturating_add(1);
            if self.successes >= self.successes_needed {
                self.failing = false;
            }
            return match (self.failing, observed) {
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
        // A failure below the thresholds is shown, but takes nobody out.
        if self.failing { Status::Fail } else { Status::Warn }
    }
}
