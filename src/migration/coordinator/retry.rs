use std::time::Duration;

/// The first pause after a failure. Each further failure in a row doubles it.
const FIRST: Duration = Duration::from_secs(1);
/// The longest pause for work that needs a person.
pub(crate) const LONGEST: Duration = Duration::from_secs(120);
/// The longest pause for work that only needs a better moment, such as one without a lock of others.
pub(crate) const LONGEST_FOR_A_MOMENT: Duration = Duration::from_secs(10);

/// The retry policy of background work: growing pauses with jitter, and each error is reported once.
#[derive(Debug, Default)]
pub(crate) struct Retry {
    failures: u32,
    last: String,
}

/// What to do after a failure.
#[derive(Debug)]
pub(crate) struct Failed {
    /// How long to wait before the next attempt.
    pub(crate) pause: Duration,
    /// The error differs from the last one, so it is worth a warning.
    pub(crate) is_new: bool,
}

impl Retry {
    /// Counts a failure. The pause is between 80 % and 100 % of `min(longest, 1 s * 2^(failures - 1))`.
    pub(crate) fn failed(&mut self, error: &str, longest: Duration) -> Failed {
        // Numbers in an error (an age, a process id, a count) do not make it another one.
        let shape: String = error.chars().filter(|c| !c.is_ascii_digit()).collect();
        let is_new = self.failures == 0 || self.last != shape;
        self.last = shape;
        let pause = FIRST.saturating_mul(2_u32.saturating_pow(self.failures)).min(longest);
        self.failures = self.failures.saturating_add(1);
        Failed { pause: pause.mul_f64(0.8 + 0.2 * fastrand::f64()), is_new }
    }

    /// Begins again with the first pause. Returns whether there was a failure.
    pub(crate) fn succeeded(&mut self) -> bool {
        std::mem::take(self).failures > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_with_jitter_up_to_the_longest() {
        let mut retry = Retry::default();
        for expected in [1, 2, 4, 8, 16, 32, 64, 120, 120] {
            let pause = retry.failed("refused", LONGEST).pause.as_secs_f64();
            let expected = f64::from(expected);
            assert!((expected * 0.8..=expected).contains(&pause), "{pause} instead of {expected}");
        }
        assert!(retry.succeeded());
        assert!(retry.failed("refused", LONGEST).pause <= FIRST);
    }

    #[test]
    fn an_error_is_new_once_whatever_its_numbers() {
        let mut retry = Retry::default();
        assert!(retry.failed("open for 3 s (pid 7)", LONGEST).is_new);
        assert!(!retry.failed("open for 14 s (pid 81)", LONGEST).is_new);
        assert!(retry.failed("permission denied", LONGEST).is_new);
        retry.succeeded();
        assert!(retry.failed("permission denied", LONGEST).is_new);
    }
}
