use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use super::clock;

/// How long this process may still believe that it is alive in the fleet's eyes.
///
/// A cheap handle. [`Lease::holds`] is one clock reading and one atomic load, and is the check that an
/// operation makes at its end: a process that was stopped in the middle finds that its lease has run out,
/// whatever it read before.
#[derive(Debug, Clone)]
pub struct Lease {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    // Nanoseconds of `clock::now`; 0 while there is no lease.
    deadline: AtomicU64,
    // The instance's number in the ledger that the deadline was given to.
    membership: AtomicI64,
}

impl Lease {
    pub(super) fn none() -> Self {
        Self::until(0)
    }

    /// A lease that never runs out, for a process that is its own fleet and for tests.
    pub fn unlimited() -> Self {
        Self::until(u64::MAX)
    }

    fn until(deadline: u64) -> Self {
        let (deadline, membership) = (AtomicU64::new(deadline), AtomicI64::new(0));
        Self { inner: Arc::new(Inner { deadline, membership }) }
    }

    /// Whether the lease still holds by this process's own clock.
    #[inline]
    pub fn holds(&self) -> bool {
        nanos(clock::now()) < self.inner.deadline.load(Ordering::Acquire)
    }

    /// Whether it still holds, and was given to this membership and not to a later one: a process that was
    /// taken for dead may join anew before all of it knows, and nothing from before may pass under the new lease.
    #[inline]
    pub(crate) fn holds_for(&self, membership: i64) -> bool {
        // In this order: who sees a later membership's deadline sees that membership too.
        self.holds() && self.inner.membership.load(Ordering::Acquire) == membership
    }

    /// How long it still holds; zero when it does not.
    pub fn remaining(&self) -> Duration {
        let deadline = Duration::from_nanos(self.inner.deadline.load(Ordering::Acquire));
        deadline.saturating_sub(clock::now())
    }

    /// Extends the lease of `membership` to `lasting` from the moment `asked` at which the database was asked
    /// for it. A lease has to end before it is given to another membership.
    pub(super) fn extend(&self, membership: i64, asked: Duration, lasting: Duration) {
        self.inner.membership.store(membership, Ordering::Release);
        self.inner.deadline.store(nanos(asked + lasting), Ordering::Release);
    }

    pub(super) fn end(&self) {
        self.inner.deadline.store(0, Ordering::Release);
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_counts_from_when_it_was_asked_for() {
        let lease = Lease::none();
        assert!(!lease.holds());
        lease.extend(1, clock::now(), Duration::from_secs(60));
        assert!(lease.holds() && lease.remaining() <= Duration::from_secs(60));
        // The answer took longer than the lease lasts.
        lease.extend(1, clock::now(), Duration::ZERO);
        assert!(!lease.holds());
        assert_eq!(lease.remaining(), Duration::ZERO);
    }

    #[test]
    fn a_lease_holds_for_the_membership_it_was_given_to() {
        let lease = Lease::none();
        lease.extend(1, clock::now(), Duration::from_secs(60));
        assert!(lease.holds_for(1));
        lease.end();
        lease.extend(2, clock::now(), Duration::from_secs(60));
        assert!(lease.holds_for(2) && !lease.holds_for(1));
    }

    #[test]
    fn an_ended_lease_does_not_hold() {
        let lease = Lease::unlimited();
        assert!(lease.holds());
        lease.end();
        assert!(!lease.holds());
    }
}
