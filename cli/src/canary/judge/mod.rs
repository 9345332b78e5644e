//! The decision: a pure function of the observations and the limits.

use serde::Serialize;

use super::statistics::{Share, above, beyond, enough, higher_rate, is_enough};

/// What one version did within the window.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Observed {
    /// Completed requests.
    pub(super) requests: f64,
    /// Requests that the service failed.
    pub(super) failed: f64,
    /// Requests that the client, or a proxy with a time limit, cancelled.
    pub(super) given_up: f64,
    /// Upper bound in seconds and number of requests up to it, by rising bounds. The last bound is infinite.
    pub(super) buckets: Vec<(f64, f64)>,
    /// Sum of all durations in seconds.
    pub(super) seconds: f64,
}

/// What a canary has to meet.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Limits {
    /// The highest share of failures, from 0 to 1, independent of the stable version.
    pub(super) errors: f64,
    /// The highest 99th percentile in seconds, independent of the stable version.
    pub(super) p99: f64,
    /// The factor of a degradation that must be detected.
    pub(super) times: f64,
    /// The probability that a canary that equals the stable version fails.
    pub(super) false_alarms: f64,
    /// The probability that a canary that is worse by the factor passes.
    pub(super) misses: f64,
    /// Number of measurements. They share the probability of a false alarm (Bonferroni correction).
    pub(super) measurements: u32,
}

/// The number of requests that are enough is computed for a failure rate of at least this part of the limit. From one
/// half, a doubling reaches the limit.
const FLOOR: f64 = 0.5;
/// A canary whose failure rate is below this part of the limit does not fail by comparison: three failures at the start
/// are no reason to roll back.
const NEGLIGIBLE: f64 = 0.1;
/// A difference below this factor does not count, even if it is significant.
const NOTABLE: f64 = 1.25;
/// Number of comparisons that can each raise a false alarm.
const TESTS: f64 = 5.0;
/// Share of requests that are slower than the 99th percentile.
const TAIL: f64 = 0.01;

/// The result of one question or of a measurement. A measurement has the worst result of its questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Outcome {
    Pass,
    /// Too few requests for an answer.
    Undecided,
    Fail,
}

/// One question and its answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Finding {
    pub(super) question: &'static str,
    pub(super) outcome: Outcome,
    pub(super) why: String,
}

/// The result of a measurement.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Verdict {
    pub(super) outcome: Outcome,
    pub(super) findings: Vec<Finding>,
}

impl Verdict {
    pub(super) fn new(findings: Vec<Finding>) -> Self {
        let outcome = findings.iter().map(|finding| finding.outcome).max().unwrap_or(Outcome::Undecided);
        Self { outcome, findings }
    }
}

impl Observed {
    /// # Errors
    ///
    /// Why the numbers cannot be those of counters and a histogram.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        let Self { requests, failed, given_up, buckets, seconds } = self;
        let numbers = [*requests, *failed, *given_up, *seconds].into_iter();
        let mut all = numbers.chain(buckets.iter().map(|bucket| bucket.1));
        if !all.all(|number| number.is_finite() && number >= 0.0) {
            return Err("a value is not a number, or negative");
        }
        if !buckets.last().is_some_and(|(bound, _)| *bound == f64::INFINITY) {
            return Err("the histogram has no bucket le=\"+Inf\"");
        }
        if !buckets.is_sorted_by(|low, high| low.0 < high.0) {
            return Err("the histogram has a bound twice");
        }
        Ok(())
    }
}

/// Judges a canary by what it and the stable version did at the same time.
pub(super) fn judge(canary: &Observed, stable: &Observed, limits: &Limits) -> Verdict {
    let alpha = limits.false_alarms / TESTS / f64::from(limits.measurements);
    let case = Case { canary, stable, limits, alpha };
    for (name, observed) in [("canary", canary), ("stable version", stable)] {
        if observed.requests < 1.0 {
            let why = format!("the {name} got no requests within the window");
            return Verdict::new(vec![Finding { question: "samples", outcome: Outcome::Undecided, why }]);
        }
    }
    Verdict::new(vec![
        case.samples(),
        case.errors_compared(),
        case.errors_limited(),
        case.tail_compared(),
        case.mean_compared(),
        case.p99_limited(),
    ])
}

struct Case<'a> {
    canary: &'a Observed,
    stable: &'a Observed,
    limits: &'a Limits,
    /// The probability of a false alarm of one comparison in one measurement.
    alpha: f64,
}

impl Case<'_> {
    /// Whether there are enough requests for a pass to be significant.
    fn samples(&self) -> Finding {
        let Limits { errors, times, misses, .. } = *self.limits;
        let rate = failures(self.stable).rate().max(errors * FLOOR);
        let (canary, stable) = (self.canary.requests, self.stable.requests);
        let (outcome, why) = if is_enough(canary, stable, rate, times, self.alpha, misses) {
            (Outcome::Pass, format!("{canary:.0} requests of the canary, {stable:.0} of the stable version"))
        } else {
            let needed = enough(stable / canary, rate, times, self.alpha, misses);
            let why = format!(
                "{canary:.0} requests of the canary are too few: about {needed:.0} show with {:.0} % probability \
                 that a failure rate of {} is {times:.1} times as high",
                100.0 * (1.0 - misses),
                percent(rate)
            );
            (Outcome::Undecided, why)
        };
        Finding { question: "samples", outcome, why }
    }

    fn errors_compared(&self) -> Finding {
        let (canary, stable) = (failures(self.canary), failures(self.stable));
        let negligible = self.limits.errors * NEGLIGIBLE;
        self.compared("errors against stable", "failed or were cancelled", canary, stable, negligible)
    }

    fn errors_limited(&self) -> Finding {
        let failed = Share { hits: self.canary.failed, of: self.canary.requests };
        self.limited("errors against the limit", "failed", failed, self.limits.errors)
    }

    /// Compares the share of requests that are slower than the stable version's 99th percentile.
    fn tail_compared(&self) -> Finding {
        let bound = self
            .stable
            .buckets
            .iter()
            .filter(|(bound, _)| self.canary.buckets.iter().any(|bucket| bucket.0 == *bound))
            .find(|(_, count)| self.stable.requests - count <= TAIL * self.stable.requests)
            .map_or(f64::INFINITY, |bucket| bucket.0);
        if bound == f64::INFINITY {
            let why =
                "the stable version's 99th percentile is above all bounds that both versions have".into();
            return Finding { question: "slow requests against stable", outcome: Outcome::Pass, why };
        }
        let (canary, stable) = (slower(self.canary, bound), slower(self.stable, bound));
        let what = format!("took longer than {}", time(bound));
        self.compared("slow requests against stable", &what, canary, stable, TAIL * FLOOR)
    }

    /// Compares means, because a doubled duration can stay within one bucket.
    fn mean_compared(&self) -> Finding {
        let (canary, stable) = (mean(self.canary), mean(self.stable));
        let error = (spread(self.canary) + spread(self.stable)).sqrt();
        let p = beyond((canary - stable) / error);
        let worse = p <= self.alpha && canary >= NOTABLE * stable;
        let why = format!(
            "{} on average, {} on the stable version{}",
            time(canary),
            time(stable),
            if worse { chance(p) } else { String::new() }
        );
        Finding { question: "mean duration against stable", outcome: fail_if(worse), why }
    }

    fn p99_limited(&self) -> Finding {
        let limit = self.limits.p99;
        let bound =
            self.canary.buckets.iter().find(|(bound, _)| *bound >= limit).map_or(f64::INFINITY, |b| b.0);
        let what = format!("took longer than {}", time(bound));
        self.limited("slow requests against the limit", &what, slower(self.canary, bound), TAIL)
    }

    fn compared(
        &self,
        question: &'static str,
        what: &str,
        canary: Share,
        stable: Share,
        negligible: f64,
    ) -> Finding {
        let p = higher_rate(canary, stable);
        let worse =
            p <= self.alpha && canary.rate() >= NOTABLE * stable.rate() && canary.rate() >= negligible;
        let why = format!(
            "{} {what}, {} on the stable version{}",
            percent(canary.rate()),
            percent(stable.rate()),
            if worse { chance(p) } else { String::new() }
        );
        Finding { question, outcome: fail_if(worse), why }
    }

    fn limited(&self, question: &'static str, what: &str, share: Share, limit: f64) -> Finding {
        let p = above(share, limit);
        let over = p <= self.alpha;
        let why = format!(
            "{} {what}, {} are allowed{}",
            percent(share.rate()),
            percent(limit),
            if over { chance(p) } else { String::new() }
        );
        Finding { question, outcome: fail_if(over), why }
    }
}

fn fail_if(worse: bool) -> Outcome {
    if worse { Outcome::Fail } else { Outcome::Pass }
}

/// Cancelled requests count in comparisons only, where both versions have the same clients.
fn failures(observed: &Observed) -> Share {
    Share { hits: observed.failed + observed.given_up, of: observed.requests }
}

fn slower(observed: &Observed, bound: f64) -> Share {
    let all = observed.buckets.last().map_or(0.0, |bucket| bucket.1);
    let within = observed.buckets.iter().find(|bucket| bucket.0 == bound).map_or(all, |bucket| bucket.1);
    Share { hits: (all - within).max(0.0), of: all }
}

fn mean(observed: &Observed) -> f64 {
    observed.seconds / observed.buckets.last().map_or(1.0, |bucket| bucket.1).max(1.0)
}

/// An upper bound of the mean's variance. Each request counts with the upper bound of its bucket, those above the last
/// bound with what the sum leaves for them.
fn spread(observed: &Observed) -> f64 {
    let (mut below, mut low, mut squares, mut least) = (0.0, 0.0, 0.0, 0.0);
    for &(bound, count) in &observed.buckets {
        let within = (count - below).max(0.0);
        let longest = if bound.is_finite() { bound } else { (observed.seconds - least).max(low) };
        squares += within * longest * longest;
        least += within * low;
        (below, low) = (count, bound);
    }
    let requests = below.max(1.0);
    (squares / requests - mean(observed).powi(2)).max(0.0) / requests
}

fn percent(rate: f64) -> String {
    format!("{:.2} %", 100.0 * rate)
}

fn time(seconds: f64) -> String {
    match seconds {
        ..0.001 => format!("{:.0} µs", 1e6 * seconds),
        ..1.0 => format!("{:.1} ms", 1000.0 * seconds),
        _ => format!("{seconds:.2} s"),
    }
}

fn chance(p: f64) -> String {
    if p < 1e-9 { " (p < 1e-9)".into() } else { format!(" (p = {p:.1e})") }
}

#[cfg(test)]
mod tests;
