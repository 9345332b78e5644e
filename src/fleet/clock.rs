use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The clock that leases are measured on: monotonic, and it counts the time a machine is suspended.
#[cfg(target_os = "linux")]
const CLOCK: ClockId = ClockId::Boottime;
#[cfg(not(target_os = "linux"))]
const CLOCK: ClockId = ClockId::Monotonic;

/// Time since an arbitrary point before this process began.
pub(super) fn now() -> Duration {
    let time = clock_gettime(CLOCK);
    // Both fields of a monotonic clock are never negative.
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}
