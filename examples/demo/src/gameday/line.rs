//! What came out of a scenario, as a line of the report.

use std::{collections::BTreeMap, path::Path, time::Instant};

use cutover_checker::Verdict;
use serde::Serialize;

use crate::{
    failure::{During, Result},
    stats::Stats,
};

/// When requests may fail, and for what.
#[derive(Debug)]
pub(crate) struct Window {
    pub(crate) why: String,
    pub(crate) from: Instant,
    /// `None` while it lasts.
    pub(crate) until: Option<Instant>,
}

impl Window {
    pub(crate) fn is_open(&self) -> bool {
        self.until.is_none()
    }

    /// Whether a request that was under way from `due` to `at` may have failed for it.
    fn covers(&self, due: Instant, at: Instant) -> bool {
        at >= self.from && self.until.is_none_or(|until| due <= until)
    }
}

/// A scenario's outcome. Times are in seconds, the longest of those that were taken.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Line {
    pub(crate) scenario: String,
    /// What the library promises for it.
    pub(crate) promise: &'static str,
    pub(crate) passed: bool,
    pub(crate) seed: u64,
    pub(crate) requests: u64,
    pub(crate) failed: u64,
    /// Failures outside of what was promised.
    pub(crate) failed_unpromised: u64,
    /// What requests failed for while they might, and how often.
    pub(crate) failed_for: BTreeMap<String, u64>,
    /// What failed that should not have, and how often.
    pub(crate) unpromised: BTreeMap<String, u64>,
    pub(crate) lost_writes: u64,
    pub(crate) stale_reads: u64,
    pub(crate) sessions_lost: u64,
    /// The scenario destroys sessions, as it says.
    pub(crate) may_lose_sessions: bool,
    pub(crate) seconds_to_detect: Option<f64>,
    pub(crate) seconds_to_recover: Option<f64>,
    /// From the first bad answer to the last one.
    pub(crate) seconds_of_bad_answers: Option<f64>,
    pub(crate) seconds: f64,
    pub(crate) reads_checked: u64,
    pub(crate) writes_checked: u64,
    /// What else was found out.
    pub(crate) notes: Vec<String>,
    pub(crate) examples: Vec<String>,
    pub(crate) ended_early: Option<String>,
    /// The scenario has judged its history itself.
    #[serde(skip)]
    pub(crate) is_judged: bool,
}

impl Line {
    pub(crate) fn count(&mut self, stats: &Stats, windows: &[Window]) {
        let counts = stats.counts();
        (self.requests, self.failed) = (counts.requests, counts.failed);
        self.sessions_lost = counts.sessions_lost;
        for failed in stats.failed_ones() {
            match windows.iter().find(|window| window.covers(failed.due, failed.at)) {
                Some(window) => *self.failed_for.entry(window.why.clone()).or_default() += 1,
                None => {
                    self.failed_unpromised += 1;
                    *self.unpromised.entry(failed.what).or_default() += 1;
                }
            }
        }
    }

    /// Adds what the checker found in a history.
    pub(crate) fn add(&mut self, verdict: Verdict) {
        self.lost_writes += verdict.lost_writes;
        self.stale_reads += verdict.stale_reads;
        self.reads_checked += verdict.reads;
        self.writes_checked += verdict.writes;
        self.examples.extend(verdict.examples);
    }

    pub(crate) fn judge(&mut self) {
        self.passed = self.ended_early.is_none()
            && self.failed_unpromised == 0
            && self.lost_writes == 0
            && self.stale_reads == 0
            && (self.sessions_lost == 0 || self.may_lose_sessions);
    }
}

/// All lines.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) passed: bool,
    pub(crate) requests: u64,
    pub(crate) failed: u64,
    pub(crate) failed_unpromised: u64,
    pub(crate) lost_writes: u64,
    pub(crate) stale_reads: u64,
    pub(crate) seconds: f64,
    pub(crate) scenarios: Vec<Line>,
}

impl Report {
    pub(crate) fn of(scenarios: Vec<Line>) -> Self {
        let sum = |of: fn(&Line) -> u64| scenarios.iter().map(of).sum();
        Self {
            passed: scenarios.iter().all(|line| line.passed),
            requests: sum(|line| line.requests),
            failed: sum(|line| line.failed),
            failed_unpromised: sum(|line| line.failed_unpromised),
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
            "scenario", "requests", "failed", "unpromised", "lost", "stale", "sessions", "detect", "recover"
        );
        for line in &self.scenarios {
            text += &format!(
                "{:<26} {:>9} {:>7} {:>10} {:>5} {:>6} {:>8} {:>7} {:>8}  {}\n",
                line.scenario,
                line.requests,
                line.failed,
                line.failed_unpromised,
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
            for (what, times) in line.unpromised.iter().take(3) {
                text += &format!("    {what}: {times}\n");
            }
        }
        text + &format!(
            "{} scenarios, {:.0} s: {} requests, {} failed, of them outside of what was promised {}; lost {}, stale {}\n",
            self.scenarios.len(),
            self.seconds,
            self.requests,
            self.failed,
            self.failed_unpromised,
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
    fn a_failure_counts_as_promised_only_while_its_window_is_open() {
        let stats = Stats::default();
        stats.failed("GET order: 503".into(), Duration::from_millis(5));
        let from = Instant::now();
        stats.failed("PUT payment: 503".into(), Duration::ZERO);
        // One that was due within, and failed later: a client waits for long.
        stats.failed("GET order: no answer in time".into(), Duration::from_secs(5));
        let window = Window { why: "kill -9".into(), from, until: Some(Instant::now()) };
        let mut line = Line::default();
        std::thread::sleep(Duration::from_millis(2));
        stats.failed("GET order: 500".into(), Duration::ZERO);
        line.count(&stats, &[window]);
        assert_eq!(line.failed_for["kill -9"], 2);
        let unpromised: Vec<&str> = line.unpromised.keys().map(String::as_str).collect();
        assert_eq!(unpromised, ["GET order: 500", "GET order: 503"]);
        line.judge();
        assert!(!line.passed);
    }

    #[test]
    fn lost_sessions_fail_a_scenario_unless_it_destroys_them() {
        let mut line = Line { sessions_lost: 1, ..Line::default() };
        line.judge();
        assert!(!line.passed);
        line.may_lose_sessions = true;
        line.judge();
        assert!(line.passed);
    }
}
