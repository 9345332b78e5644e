//! The statistical tests of the judge. All are one-sided: a canary that is better does not fail.

use statrs::distribution::{Binomial, ContinuousCDF, DiscreteCDF, Normal};

/// A count out of a total.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Share {
    pub(super) hits: f64,
    pub(super) of: f64,
}

impl Share {
    pub(super) fn rate(self) -> f64 {
        if self.of > 0.0 { self.hits / self.of } else { 0.0 }
    }
}

/// The probability of at least this many hits in `canary`, if both have the same rate.
///
/// Given the sum of hits, each one belongs to the canary with the probability of its share of the requests. This is the
/// conditional test of two Poisson rates (Przyborowski and Wilenski, "Homogeneity of results in testing samples from Poisson series",
/// Biometrika 31, 1940). It is exact for small counts; the normal approximation is not.
pub(super) fn higher_rate(canary: Share, stable: Share) -> f64 {
    let share = canary.of / (canary.of + stable.of);
    at_least(canary.hits, canary.hits + stable.hits, share)
}

/// The probability of at least this many hits, if the true rate is `rate`.
pub(super) fn above(share: Share, rate: f64) -> f64 {
    at_least(share.hits, share.of, rate)
}

/// Whether `requests` are enough to detect, with the probability 1 − `misses`, that the canary's rate is `times` the
/// `rate` of a stable version with `stable` requests.
pub(super) fn is_enough(requests: f64, stable: f64, rate: f64, times: f64, alpha: f64, misses: f64) -> bool {
    let expected = requests * rate * times + stable * rate;
    // One standard deviation below the expected number, because the number of hits is random, too.
    let hits = (expected - expected.sqrt()).floor();
    if hits < 1.0 {
        return false;
    }
    let (equal, worse) = (requests / (requests + stable), times * requests / (times * requests + stable));
    let detected = first(hits, |count| at_least(count, hits, equal) <= alpha);
    at_least(detected, hits, worse) >= 1.0 - misses
}

/// The number of requests that [`is_enough`] needs.
pub(super) fn enough(stable_per_request: f64, rate: f64, times: f64, alpha: f64, misses: f64) -> f64 {
    let mut requests = 1.0;
    while !is_enough(requests, requests * stable_per_request, rate, times, alpha, misses) && requests < 1e9 {
        requests *= 1.1;
    }
    requests.ceil()
}

/// The probability of a standard normal value of at least `z`.
pub(super) fn beyond(z: f64) -> f64 {
    if z.is_finite() { Normal::standard().sf(z) } else { 1.0 }
}

/// P(X ≥ `count`) for X binomial. Prometheus extrapolates, so the counts are rounded.
fn at_least(count: f64, of: f64, probability: f64) -> f64 {
    let (count, of) = (count.round().max(0.0) as u64, of.round().max(0.0) as u64);
    match count.checked_sub(1) {
        None => 1.0,
        Some(below) => Binomial::new(probability.clamp(0.0, 1.0), of).map_or(1.0, |x| x.sf(below)),
    }
}

/// The smallest integer up to `limit` + 1 for which `holds` is true. `holds` changes once, from false to true.
fn first(limit: f64, holds: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = (0u64, limit as u64 + 1);
    while low < high {
        let middle = low + (high - low) / 2;
        if holds(middle as f64) { high = middle } else { low = middle + 1 }
    }
    low as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_conditional_test_has_textbook_values() {
        // 3 of 3 failures at a share of 5 %: 0.05³.
        let p = higher_rate(Share { hits: 3.0, of: 50.0 }, Share { hits: 0.0, of: 950.0 });
        assert!((p - 0.000_125).abs() < 1e-9, "{p}");
        // No failures are no evidence.
        assert_eq!(higher_rate(Share { hits: 0.0, of: 50.0 }, Share { hits: 9.0, of: 950.0 }), 1.0);
        // P(X ≥ 2) of 10 at 0.1: 1 − 0.9¹⁰ − 10 · 0.1 · 0.9⁹.
        let p = above(Share { hits: 2.0, of: 10.0 }, 0.1);
        assert!((p - 0.263_901).abs() < 1e-6, "{p}");
    }

    #[test]
    fn rarer_failures_need_more_requests() {
        let rare = enough(19.0, 0.001, 2.0, 0.002, 0.01);
        let frequent = enough(19.0, 0.01, 2.0, 0.002, 0.01);
        assert!(rare > 9.0 * frequent && rare < 11.0 * frequent, "{rare} {frequent}");
        assert!(!is_enough(frequent / 2.0, frequent * 9.5, 0.01, 2.0, 0.002, 0.01));
    }

    #[test]
    fn the_normal_tail_has_textbook_values() {
        assert!((beyond(1.959_964) - 0.025).abs() < 1e-6);
        assert_eq!(beyond(f64::NAN), 1.0);
    }
}
