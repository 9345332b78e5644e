use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::clock;

/// How long this process still counts as a member of its fleet, by its own clock.
///
/// A cheap handle. [`Lease::holds`] is one clock reading and one atomic load. An operation checks it again when it ends, so a
/// process that was stopped in the middle finds its lease expired and discards what it read.
#[derive(Debug, Clone)]
pub struct Lease {
    // As `clock::nanos`; 0: no lease.
    deadline: Arc<AtomicU64>,
}

impl Lease {
    pub(super) fn none() -> Self {
        Self { deadline: Arc::new(AtomicU64::new(0)) }
    }

    /// A lease that never expires, for a process that is its own fleet and for tests.
    pub fn unlimited() -> Self {
        Self { deadline: Arc::new(AtomicU64::new(u64::MAX)) }
    }

    /// Whether the lease has not expired by this process's own clock.
    #[inline]
    pub fn holds(&self) -> bool {
        clock::nanos() < self.deadline.load(Ordering::Acquire)
    }

    /// The time until it expires; zero if it has.
    pub fn remaining(&self) -> Duration {
        let deadline = Duration::from_nanos(self.deadline.load(Ordering::Acquire));
        deadline.saturating_sub(clock::now())
    }

    /// Extends the lease until `length` after the moment `requested` at which the request was sent.
    pub(super) fn extend(&self, requested: Duration, length: Duration) {
        self.deadline.store(nanos(requested + length), Ordering::Release);
    }

    pub(super) fn end(&self) {
        self.deadline.store(0, Ordering::Release);
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_counts_from_its_request() {
        let lease = Lease::none();
        assert!(!lease.holds());
        lease.extend(clock::now(), Duration::from_secs(60));
        assert!(lease.holds() && lease.remaining() <= Duration::from_secs(60));
        // The answer took longer than the lease lasts.
        lease.extend(clock::now(), Duration::ZERO);
        assert!(!lease.holds());
        assert_eq!(lease.remaining(), Duration::ZERO);
    }

    #[test]
    fn an_ended_lease_does_not_hold() {
        let lease = Lease::unlimited();
        assert!(lease.holds());
        lease.end();
        assert!(!lease.holds());
    }
}
