use std::time::Duration;

use crate::config::{ConfigError, Problem};

/// The most bounds that a histogram can have. Each costs memory per route, method, status and core.
pub(super) const MAX_BOUNDS: usize = 24;

/// The bounds of Prometheus' client libraries.
const DEFAULT: [u64; 14] = [5, 10, 25, 50, 75, 100, 250, 500, 750, 1_000, 2_500, 5_000, 7_500, 10_000];

/// The upper bounds of a histogram's buckets.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Bounds {
    /// Comparing integers keeps floats off the request path. Only the first ones are used, as many as there are seconds.
    nanos: [u64; MAX_BOUNDS],
    seconds: Box<[f64]>,
}

impl Bounds {
    /// Bounds, shortest first.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with every bound that can't be used.
    pub(crate) fn new(bounds: &[Duration]) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        if bounds.is_empty() || bounds.len() > MAX_BOUNDS {
            let problem = format!("{} bounds; use 1 to {MAX_BOUNDS}", bounds.len());
            problems.push(Problem::new("buckets", problem));
        }
        for (index, bound) in bounds.iter().enumerate() {
            let before = index.checked_sub(1).map_or(Duration::ZERO, |before| bounds[before]);
            if *bound <= before {
                let problem = format!("{bound:?} comes after {before:?}; sort the bounds, shortest first");
                problems.push(Problem::new("buckets", problem));
            }
            if bound.as_nanos() > u128::from(u64::MAX) {
                problems.push(Problem::new("buckets", format!("{bound:?} is too long; use at most a day")));
            }
        }
        ConfigError::check(problems)?;
        let mut nanos = [u64::MAX; MAX_BOUNDS];
        for (slot, bound) in nanos.iter_mut().zip(bounds) {
            *slot = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX);
        }
        Ok(Self { nanos, seconds: bounds.iter().map(Duration::as_secs_f64).collect() })
    }

    /// Bounds that a constant lists, in microseconds.
    pub(crate) fn of_micros<const N: usize>(micros: [u64; N]) -> Self {
        let mut nanos = [u64::MAX; MAX_BOUNDS];
        for (slot, micros) in nanos.iter_mut().zip(micros) {
            *slot = micros * 1_000;
        }
        let seconds = micros.map(|micros| Duration::from_micros(micros).as_secs_f64());
        Self { nanos, seconds: Box::new(seconds) }
    }

    /// The bounds in seconds.
    pub(crate) fn seconds(&self) -> &[f64] {
        &self.seconds
    }

    /// The index of the bucket that a duration of so many nanoseconds belongs to.
    pub(super) fn bucket(&self, nanos: u64) -> usize {
        let used = self.seconds.len();
        self.nanos[..used].iter().position(|bound| nanos <= *bound).unwrap_or(used)
    }
}

impl Default for Bounds {
    fn default() -> Self {
        Self::of_micros(DEFAULT.map(|millis| millis * 1_000))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unusable_bounds_are_refused_and_a_bound_is_in_its_bucket() {
        let millis = |all: &[u64]| all.iter().map(|m| Duration::from_millis(*m)).collect::<Vec<_>>();
        for (bounds, problem) in [
            (millis(&[]), "0 bounds; use 1 to 24"),
            (millis(&[0]), "0ns comes after 0ns"),
            (millis(&[5, 5]), "5ms comes after 5ms"),
            (millis(&(1..=25).collect::<Vec<_>>()), "25 bounds"),
            (vec![Duration::MAX], "is too long"),
        ] {
            let error = Bounds::new(&bounds).expect_err("unusable").to_string();
            assert!(error.contains(problem), "{error}");
        }
        let bounds = Bounds::new(&millis(&[1, 75])).expect("usable");
        assert_eq!(bounds.seconds(), [0.001, 0.075]);
        assert_eq!([0, 1_000_000, 1_000_001, 75_000_001].map(|nanos| bounds.bucket(nanos)), [0, 0, 1, 2]);
    }
}
