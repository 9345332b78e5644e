//! The clock of leases.
//!
//! A read pays for one reading of it, after the value is there (see `Lease::holds`). That is most of what a read through
//! `DualWrite` costs. Neither of the cheaper ways is safe:
//!
//! - *A time that a background task keeps.* After SIGSTOP, the thread of a read may run before that task. It would return
//!   what it read before the pause. No margin of the lease covers this, because a pause has no limit.
//! - *A coarse clock of the kernel.* The monotonic one does not count the time in which the machine was suspended, and the
//!   other one can be set. Both advance with the timer interrupt of one processor. Where a hypervisor takes that processor
//!   away, they stand still while another one runs.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The clock that leases are measured on: monotonic, and it runs on while the machine is suspended.
#[cfg(target_os = "linux")]
const CLOCK: ClockId = ClockId::Boottime;
#[cfg(not(target_os = "linux"))]
const CLOCK: ClockId = ClockId::Monotonic;

/// Time since an arbitrary point before this process began.
pub(super) fn now() -> Duration {
    Duration::from_nanos(nanos())
}

/// The same in nanoseconds, for the check that every read makes. It overflows after 584 years.
#[inline]
pub(super) fn nanos() -> u64 {
    let time = clock_gettime(CLOCK);
    // Both fields of a monotonic clock are never negative.
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}
