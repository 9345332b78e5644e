//! How long the service's pinned transactions take.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets per doubling. A percentile is exact to 9 %.
const STEPS: usize = 8;
/// Buckets from 16 µs to 67 s.
const BUCKETS: usize = 22 * STEPS;
const FIRST_NANOS: f64 = 16_384.0;

/// Counts of the durations of committed transactions, from begin to commit.
#[derive(Debug)]
pub(crate) struct WriteTimes([AtomicU64; BUCKETS]);

impl WriteTimes {
    pub(crate) fn new() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }

    pub(crate) fn record(&self, took: Duration) {
        let step = (took.as_nanos() as f64 / FIRST_NANOS).max(1.0).log2() * STEPS as f64;
        self.0[(step as usize).min(BUCKETS - 1)].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn counts(&self) -> WriteCounts {
        WriteCounts(self.0.iter().map(|count| count.load(Ordering::Relaxed)).collect())
    }
}

/// The counts at one time, or between two times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WriteCounts(Box<[u64]>);

impl WriteCounts {
    /// Those that have come since `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self(self.0.iter().zip(&earlier.0).map(|(now, then)| now.saturating_sub(*then)).collect())
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The 99th percentile: the upper bound of its bucket. Zero if nothing was counted.
    pub(crate) fn p99(&self) -> Duration {
        let above = self.total() / 100;
        let mut left = self.total();
        for (index, count) in self.0.iter().enumerate() {
            left -= count;
            if *count > 0 && left <= above {
                let nanos = FIRST_NANOS * ((index + 1) as f64 / STEPS as f64).exp2();
                return Duration::from_nanos(nanos as u64);
            }
        }
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_exact_to_a_bucket() {
        let times = WriteTimes::new();
        let before = times.counts();
        assert_eq!(before.p99(), Duration::ZERO);
        (0..990).for_each(|_| times.record(Duration::from_millis(2)));
        (0..10).for_each(|_| times.record(Duration::from_millis(50)));
        let counts = times.counts().since(&before);
        assert_eq!(counts.total(), 1_000);
        let p99 = counts.p99().as_secs_f64();
        assert!((0.002..0.0022).contains(&p99), "{p99}");
        (0..10).for_each(|_| times.record(Duration::from_millis(50)));
        let p99 = times.counts().p99().as_secs_f64();
        assert!((0.050..0.055).contains(&p99), "{p99}");
        for extreme in [Duration::ZERO, Duration::from_secs(3_600)] {
            times.record(extreme);
        }
        assert_eq!(times.counts().total(), 1_012);
    }
}
