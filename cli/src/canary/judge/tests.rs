use statrs::distribution::{Binomial, ContinuousCDF, DiscreteCDF, Normal};

use super::*;

const LIMITS: Limits =
    Limits { errors: 0.01, p99: 0.5, times: 2.0, false_alarms: 0.01, misses: 0.01, measurements: 1 };
/// Requests of the stable version for each of a canary with 5 %.
const TIMES_STABLE: f64 = 19.0;
const BOUNDS: [f64; 15] =
    [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, f64::INFINITY];
const CASES: u32 = 2_000;

/// A service with log-normal durations, and its failure rate.
#[derive(Debug, Clone, Copy)]
struct Service {
    errors: f64,
    median: f64,
    sigma: f64,
}

impl Service {
    /// A random service with a 99th percentile of at most half the limit.
    fn any(random: &mut fastrand::Rng) -> Self {
        let sigma = 0.05 + 0.9 * random.f64();
        let longest = LIMITS.p99 / 2.0 / (2.33 * sigma).exp();
        let median = 0.001 + (longest - 0.001) * random.f64();
        Self { errors: LIMITS.errors * (FLOOR + 0.2 * random.f64()), median, sigma }
    }

    fn observe(self, requests: f64, random: &mut fastrand::Rng) -> Observed {
        let (mut buckets, mut left, mut mass_left) = (Vec::new(), requests, 1.0);
        let mut below = 0.0;
        for bound in BOUNDS {
            let until = match bound.is_finite() {
                true => Normal::standard().cdf((bound / self.median).ln() / self.sigma),
                false => 1.0,
            };
            let mass = (until - below).max(0.0);
            let here = if mass_left > 1e-12 { draw(left, mass / mass_left, random) } else { 0.0 };
            (left, mass_left, below) = (left - here, mass_left - mass, until);
            buckets.push((bound, requests - left));
        }
        let mean = self.median * (self.sigma.powi(2) / 2.0).exp();
        let deviation = mean * (self.sigma.powi(2).exp() - 1.0).sqrt() / requests.sqrt();
        let chance = Normal::standard().inverse_cdf(random.f64().clamp(1e-9, 1.0 - 1e-9));
        Observed {
            requests,
            failed: draw(requests, self.errors, random),
            given_up: 0.0,
            buckets,
            seconds: requests * (mean + deviation * chance),
        }
    }
}

/// A random number of a binomial distribution.
fn draw(of: f64, probability: f64, random: &mut fastrand::Rng) -> f64 {
    let of = of.max(0.0) as u64;
    match Binomial::new(probability.clamp(0.0, 1.0), of) {
        Ok(x) if of > 0 => x.inverse_cdf(random.f64().clamp(1e-12, 1.0 - 1e-12)).min(of) as f64,
        _ => 0.0,
    }
}

/// Number of random cases with a wrong result, each with 1.1 times the requests that are enough.
fn wrong(is_wrong: impl Fn(Outcome) -> bool, change: impl Fn(Service) -> Service) -> u32 {
    let mut found = 0;
    for seed in 0..CASES {
        let random = &mut fastrand::Rng::with_seed(u64::from(seed));
        let stable = Service::any(random);
        let alpha = LIMITS.false_alarms / TESTS;
        let requests = enough(TIMES_STABLE, stable.errors, LIMITS.times, alpha, LIMITS.misses) * 1.1;
        let canary = change(stable).observe(requests.round(), random);
        let stable = stable.observe((requests * TIMES_STABLE).round(), random);
        if is_wrong(judge(&canary, &stable, &LIMITS).outcome) {
            found += 1;
        }
    }
    println!("{found} of {CASES} cases are wrong");
    found
}

#[test]
fn an_equal_canary_fails_in_under_one_case_in_100() {
    assert!(wrong(|outcome| outcome == Outcome::Fail, |same| same) < CASES / 100);
}

#[test]
fn doubled_errors_pass_in_under_one_case_in_100() {
    let worse = |stable: Service| Service { errors: 2.0 * stable.errors, ..stable };
    assert!(wrong(|outcome| outcome != Outcome::Fail, worse) < CASES / 100);
}

#[test]
fn doubled_latency_passes_in_under_one_case_in_100() {
    let worse = |stable: Service| Service { median: 2.0 * stable.median, ..stable };
    assert!(wrong(|outcome| outcome != Outcome::Fail, worse) < CASES / 100);
}

fn observed(requests: f64, failed: f64) -> Observed {
    let random = &mut fastrand::Rng::with_seed(7);
    let service = Service { errors: 0.0, median: 0.02, sigma: 0.3 };
    Observed { failed, ..service.observe(requests, random) }
}

fn outcome_of(verdict: &Verdict, question: &str) -> Outcome {
    verdict.findings.iter().find(|finding| finding.question == question).expect("asked").outcome
}

#[test]
fn few_requests_can_fail_a_canary_but_not_pass_it() {
    let stable = observed(1_900.0, 0.0);
    let good = judge(&observed(100.0, 0.0), &stable, &LIMITS);
    assert_eq!((good.outcome, outcome_of(&good, "samples")), (Outcome::Undecided, Outcome::Undecided));
    let bad = judge(&observed(100.0, 4.0), &stable, &LIMITS);
    assert_eq!(outcome_of(&bad, "errors against stable"), Outcome::Fail);
    assert_eq!(bad.outcome, Outcome::Fail);
}

#[test]
fn equal_error_rates_fail_only_above_the_limit() {
    let verdict = judge(&observed(20_000.0, 100.0), &observed(380_000.0, 1_900.0), &LIMITS);
    assert_eq!(verdict.outcome, Outcome::Pass, "{verdict:?}");
    let verdict = judge(&observed(20_000.0, 400.0), &observed(380_000.0, 7_600.0), &LIMITS);
    assert_eq!(outcome_of(&verdict, "errors against stable"), Outcome::Pass);
    assert_eq!(outcome_of(&verdict, "errors against the limit"), Outcome::Fail);
}

#[test]
fn a_negligible_difference_does_not_fail_a_canary() {
    // 5 failures in 100,000 requests; the stable version has none.
    let verdict = judge(&observed(100_000.0, 5.0), &observed(1_900_000.0, 0.0), &LIMITS);
    assert_eq!(verdict.outcome, Outcome::Pass, "{verdict:?}");
}

#[test]
fn more_measurements_need_more_evidence() {
    let (canary, stable) = (observed(100.0, 3.0), observed(1_900.0, 0.0));
    assert_eq!(judge(&canary, &stable, &LIMITS).outcome, Outcome::Fail);
    let often = Limits { measurements: 100, ..LIMITS };
    assert_eq!(judge(&canary, &stable, &often).outcome, Outcome::Undecided);
}

#[test]
fn no_requests_are_undecided() {
    let (good, none) = (observed(20_000.0, 0.0), Observed { requests: 0.0, ..observed(20_000.0, 0.0) });
    for (canary, stable) in [(&none, &good), (&good, &none)] {
        let verdict = judge(canary, stable, &LIMITS);
        assert_eq!(verdict.outcome, Outcome::Undecided);
        assert!(verdict.findings[0].why.contains("no requests"), "{verdict:?}");
    }
}

#[test]
fn values_that_no_counter_has_are_refused() {
    let good = observed(20_000.0, 0.0);
    assert_eq!(good.check(), Ok(()));
    let unusable: [(Observed, &str); 4] = [
        (Observed { failed: f64::NAN, ..good.clone() }, "not a number"),
        (Observed { buckets: Vec::new(), ..good.clone() }, "no bucket"),
        (Observed { buckets: vec![(1.0, 1.0), (1.0, 1.0), (f64::INFINITY, 2.0)], ..good.clone() }, "twice"),
        (Observed { seconds: -1.0, ..good.clone() }, "negative"),
    ];
    for (observed, why) in unusable {
        assert!(observed.check().is_err_and(|problem| problem.contains(why)), "{observed:?}");
    }
}

#[test]
fn a_bound_that_the_canary_lacks_is_not_compared() {
    let stable = observed(380_000.0, 0.0);
    let slow = Service { errors: 0.0, median: 0.4, sigma: 0.3 };
    let mut canary = slow.observe(20_000.0, &mut fastrand::Rng::with_seed(7));
    canary.buckets.retain(|bucket| bucket.0 >= 0.25);
    assert_eq!(outcome_of(&judge(&canary, &stable, &LIMITS), "slow requests against stable"), Outcome::Fail);
}
