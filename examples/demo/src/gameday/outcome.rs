//! The outcome of a scenario, and the report of all scenarios.

use std::{collections::BTreeMap, path::Path, time::Instant};

use cutover_checker::Verdict;
use serde::Serialize;

use crate::{
    failure::{During, Result},
    stats::Stats,
};

/// A time in which requests may fail, and why.
#[derive(Debug)]
pub(crate) struct Window {
    pub(crate) why: String,
    pub(crate) from: Instant,
    /// `None` while it is open.
    pub(crate) until: Option<Instant>,
}

impl Window {
    pub(crate) fn is_open(&self) -> bool {
        self.until.is_none()
    }

    /// Whether a request that ran from `due` to `at` may have failed because of it.
    fn covers(&self, due: Instant, at: Instant) -> bool {
        at >= self.from && self.until.is_none_or(|until| due <= until)
    }
}

/// The outcome of a scenario. Each time is the longest that was measured.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Outcome {
    pub(crate) scenario: String,
    /// What is expected of the library.
    pub(crate) promise: &'static str,
    pub(crate) passed: bool,
    pub(crate) seed: u64,
    pub(crate) requests: u64,
    pub(crate) failed: u64,
    /// Failures that are not expected.
    pub(crate) failed_unexpected: u64,
    /// Expected failures, by fault.
    pub(crate) failed_for: BTreeMap<String, u64>,
    /// Unexpected failures, by kind.
    pub(crate) unexpected: BTreeMap<String, u64>,
    pub(crate) lost_writes: u64,
    pub(crate) stale_reads: u64,
    pub(crate) sessions_lost: u64,
    /// Whether the scenario destroys sessions.
    pub(crate) may_lose_sessions: bool,
    pub(crate) seconds_to_detect: Option<f64>,
    pub(crate) seconds_to_recover: Option<f64>,
    /// From the first bad answer to the last one.
    pub(crate) seconds_of_bad_answers: Option<f64>,
    pub(crate) seconds: f64,
    pub(crate) reads_checked: u64,
    pub(crate) writes_checked: u64,
    /// Other observations.
    pub(crate) notes: Vec<String>,
    pub(crate) examples: Vec<String>,
    pub(crate) ended_early: Option<String>,
    /// Whether the scenario has judged its history itself.
    #[serde(skip)]
    pub(crate) is_judged: bool,
}

impl Outcome {
    pub(crate) fn count(&mut self, stats: &Stats, windows: &[Window]) {
        let counts = stats.counts();
        (self.requests, self.failed) = (counts.requests, counts.failed);
        self.sessions_lost = counts.sessions_lost;
        for failed in stats.failed_requests() {
            match windows.iter().find(|window| window.covers(failed.due, failed.at)) {
                Some(window) => *self.failed_for.entry(window.why.clone()).or_default() += 1,
                None => {
                    self.failed_unexpected += 1;
                    *self.unexpected.entry(failed.what).or_default() += 1;
                }
            }
        }
    }

    /// Adds the checker's verdict about a history.
    pub(crate) fn add(&mut self, verdict: Verdict) {
        self.lost_writes += verdict.lost_writes;
        self.stale_reads += verdict.stale_reads;
        self.reads_checked += verdict.reads;
        self.writes_checked += verdict.writes;
        self.examples.extend(verdict.examples);
    }

    pub(crate) fn judge(&mut self) {
        self.passed = self.ended_early.is_none()
            && self.failed_unexpected == 0
            && self.lost_writes == 0
            && self.stale_reads == 0
            && (self.sessions_lost == 0 || self.may_lose_sessions);
    }
}

/// The outcomes of all scenarios.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) passed: bool,
    pub(crate) requests: u64,
    pub(crate) failed: u64,
    pub(crate) failed_unexpected: u64,
    pub(crate) lost_writes: u64,
    pub(crate) stale_reads: u64,
    pub(crate) seconds: f64,
    pub(crate) scenarios: Vec<Outcome>,
}

impl Report {
    pub(crate) fn of(scenarios: Vec<Outcome>) -> Self {
        let sum = |of: fn(&Outcome) -> u64| scenarios.iter().map(of).sum();
        Self {
            passed: scenarios.iter().all(|line| line.passed),
            requests: sum(|line| line.requests),
            failed: sum(|line| line.failed),
            failed_unexpected: sum(|line| line.failed_unexpected),
            lost_writes: sum(|line| line.lost_writes),
            stale_reads: sum(|line| line.stale_reads),
            seconds: scenarios.iter().map(|line| line.seconds).sum(),
            scenarios,
        }
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let what = format!("writing the report to {}", path.display());
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).during(&what)?;
        }
        std::fs::write(path, serde_json::to_string_pretty(self)? + "\n").during(&what)
    }

    pub(crate) fn table(&self) -> String {
        let time = |seconds: Option<f64>| seconds.map(|s| format!("{s:.1}")).unwrap_or_default();
        let mut text = format!(
            "{:<26} {:>9} {:>7} {:>10} {:>5} {:>6} {:>8} {:>7} {:>8}\n",
            "scenario", "requests", "failed", "unexpected", "lost", "stale", "sessions", "detect", "recover"
        );
        for line in &self.scenarios {
            text += &format!(
                "{:<26} {:>9} {:>7} {:>10} {:>5} {:>6} {:>8} {:>7} {:>8}  {}\n",
                line.scenario,
                line.requests,
                line.failed,
                line.failed_unexpected,
                line.lost_writes,
                line.stale_reads,
                line.sessions_lost,
                time(line.seconds_to_detect),
                time(line.seconds_to_recover),
                if line.passed { "passed" } else { "FAILED" }
            );
            for why in line.notes.iter().chain(&line.ended_early).chain(line.examples.iter().take(3)) {
                text += &format!("    {why}\n");
            }
            for (what, times) in line.unexpected.iter().take(3) {
                text += &format!("    {what}: {times}\n");
            }
        }
        text + &format!(
            "{} scenarios, {:.0} s: {} requests, {} failed, {} of them unexpectedly; {} lost writes, {} stale reads\n",
            self.scenarios.len(),
            self.seconds,
            self.requests,
            self.failed,
            self.failed_unexpected,
            self.lost_writes,
            self.stale_reads
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn failures_are_expected_only_within_a_window() {
        let stats = Stats::default();
        stats.failed("GET order: 503".into(), Duration::from_millis(5));
        let from = Instant::now();
        stats.failed("PUT payment: 503".into(), Duration::ZERO);
        // Due within the window, failed later.
        stats.failed("GET order: no answer in time".into(), Duration::from_secs(5));
        let window = Window { why: "kill -9".into(), from, until: Some(Instant::now()) };
        let mut line = Outcome::default();
        std::thread::sleep(Duration::from_millis(2));
        stats.failed("GET order: 500".into(), Duration::ZERO);
        line.count(&stats, &[window]);
        assert_eq!(line.failed_for["kill -9"], 2);
        let unexpected: Vec<&str> = line.unexpected.keys().map(String::as_str).collect();
        assert_eq!(unexpected, ["GET order: 500", "GET order: 503"]);
        line.judge();
        assert!(!line.passed);
    }

    #[test]
    fn lost_sessions_fail_unless_the_scenario_destroys_them() {
        let mut line = Outcome { sessions_lost: 1, ..Outcome::default() };
        line.judge();
        assert!(!line.passed);
        line.may_lose_sessions = true;
        line.judge();
        assert!(line.passed);
    }
}
