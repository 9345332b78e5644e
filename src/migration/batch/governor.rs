//! How much of the time a pass works, so that the service's own writes stay about as fast as without it.
//!
//! The control law begins low, grows slowly and gives way quickly:
//!
//! - The *quiet value* is the 99th percentile of the service's pinned transactions while the pass rests: at its beginning,
//!   and then for two seconds in every 30. All instances rest in the same seconds by their clocks. What ends in the first
//!   half second does not count, because it may have waited for a batch.
//! - After the first quiet value, the pass works for a tenth of the time. The same applies when a foreground appears
//!   later.
//! - Between these, each window of a second or more ends with a decision. If the 99th percentile of the window is above
//!   the quiet value times the ratio, the pass halves the share of the time in which it works. If it is within the lower
//!   half of what the ratio allows, the share grows: it doubles until it was too high for the first time, and from then on
//!   it grows by a tenth. In between, the share stays.
//! - After a batch, the pass rests for as long as the share says.
//!
//! If a window of five seconds has fewer than 50 transactions, there is no foreground to protect, and the pass does not
//! rest.
//!
//! For its first quarter of a second of work, a pass does not measure: it works for a tenth of the time if the service
//! writes meanwhile, and all the time otherwise. So a pass over a small table ends before it would know a quiet value.

use std::time::Duration;

use crate::migration::runtime::WriteCounts;

/// A percentile of fewer transactions is not meaningful.
const MIN_WRITES: u64 = 50;
/// A decision waits for this many transactions, but not longer than [`LONGEST_WINDOW`].
const ENOUGH_WRITES: u64 = 200;
const SHORTEST_WINDOW: Duration = Duration::from_secs(1);
const LONGEST_WINDOW: Duration = Duration::from_secs(5);
/// How often, and for how long, a pass rests to measure the quiet value.
const QUIET_EVERY: Duration = Duration::from_secs(30);
const QUIET: Duration = Duration::from_secs(2);
/// The part of that in which transactions end that began beside a batch.
const SETTLE: Duration = Duration::from_millis(500);
/// A pass never works less than this, so that it ends. Writes that wait three times as long beside a batch then stay near
/// the default ratio.
const MIN_SHARE: f64 = 0.02;
/// The share with which a pass begins beside a foreground. Its effect is not known yet, and a window at a share that is
/// too high has enough slow transactions to move the 99th percentile of a minute.
const FIRST_SHARE: f64 = 0.1;
/// How long a pass works before it measures for the first time.
const UNMEASURED_WORK: Duration = Duration::from_millis(250);
/// A tenth of the share, but at least this.
const MIN_GROWTH: f64 = 0.01;

/// The governor of one pass on one instance. Its workers share it.
#[derive(Debug)]
pub(super) struct Governor {
    ratio: f64,
    /// What is left of the work before the first measurement.
    unmeasured: Duration,
    /// The 99th percentile of the service's transactions before the pass; `None`: there were too few.
    before: Option<Duration>,
    share: f64,
    /// Whether the share has not been too high yet, so that it doubles.
    probes: bool,
    quiet: Option<Duration>,
    /// When an attempt to measure the first quiet value may be repeated.
    next_attempt: Duration,
    /// The 99th percentile of the last window; `None`: it had too few transactions.
    busy: Option<Duration>,
    /// Whether the last measurement had too few transactions.
    is_idle: bool,
    /// How many transactions the service has had, and when that number last changed during the pass.
    seen: (u64, Option<Duration>),
    /// What is measured now, since when, and the counts at that time.
    window: Option<(Window, Duration, WriteCounts)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Window {
    /// The first part of a rest, which is not measured.
    Settling,
    Quiet,
    Busy,
}

impl Governor {
    /// `writes` are the counts of the service's transactions at the beginning of the pass.
    pub(super) fn new(ratio: f64, writes: &WriteCounts) -> Self {
        Self {
            ratio,
            unmeasured: UNMEASURED_WORK,
            before: (writes.total() >= MIN_WRITES).then(|| writes.p99()),
            share: 1.0,
            probes: true,
            quiet: None,
            next_attempt: Duration::ZERO,
            busy: None,
            is_idle: false,
            seen: (writes.total(), None),
            window: None,
        }
    }

    /// Whether the service has written a short time ago. Even one write can wait for a batch.
    pub(super) fn has_seen_writes(&self, now: Duration) -> bool {
        self.seen.1.is_some_and(|last| now.saturating_sub(last) < 2 * LONGEST_WINDOW)
    }

    /// How long a slow write of the service takes without the pass: the quiet value, or until that is known, the 99th
    /// percentile since the process began. `None`: it has had too few.
    pub(super) fn slow_write(&self) -> Option<Duration> {
        self.quiet.or(self.before)
    }

    /// How long to rest after a batch that took this long. `now` is the time by the wall clock, since any moment that all
    /// instances agree on. `writes` are the counts of the service's transactions.
    pub(super) fn rest(&mut self, now: Duration, batch: Duration, writes: WriteCounts) -> Duration {
        if writes.total() != self.seen.0 {
            self.seen = (writes.total(), Some(now));
        }
        if !self.unmeasured.is_zero() {
            self.unmeasured = self.unmeasured.saturating_sub(batch);
            return if self.has_seen_writes(now) { rest_after(batch, FIRST_SHARE) } else { Duration::ZERO };
        }
        if self.window.as_ref().is_some_and(|(_, since, _)| now < *since) {
            // The clock was set back.
            (self.window, self.next_attempt) = (None, Duration::ZERO);
        }
        let into_period = Duration::from_nanos((now.as_nanos() % QUIET_EVERY.as_nanos()) as u64);
        // Without a foreground there is nothing to measure.
        let has_foreground = self.has_seen_writes(now) && !self.is_idle;
        let is_due = if self.quiet.is_none() { now >= self.next_attempt } else { into_period < QUIET };
        let wanted = if has_foreground && is_due { Window::Settling } else { Window::Busy };
        match &self.window {
            Some((Window::Busy, since, before)) => {
                let (length, window) = (now.saturating_sub(*since), writes.since(before));
                if wanted == Window::Settling {
                    self.window = Some((wanted, now, writes));
                } else if length >= LONGEST_WINDOW
                    || (length >= SHORTEST_WINDOW && window.total() >= ENOUGH_WRITES)
                {
                    self.decide(&window);
                    self.window = Some((Window::Busy, now, writes));
                }
            }
            Some((Window::Settling, since, _)) => {
                if now.saturating_sub(*since) >= SETTLE {
                    self.window = Some((Window::Quiet, *since, writes));
                }
            }
            Some((Window::Quiet, since, before)) => {
                let (length, window) = (now.saturating_sub(*since), writes.since(before));
                if length >= QUIET {
                    self.set_quiet(now, &window);
                    self.window = Some((Window::Busy, now, writes));
                }
            }
            None => self.window = Some((wanted, now, writes)),
        }
        match &self.window {
            Some((Window::Settling, since, _)) => (*since + SETTLE).saturating_sub(now),
            Some((Window::Quiet, since, _)) => (*since + QUIET).saturating_sub(now),
            _ => rest_after(batch, self.share),
        }
    }

    fn decide(&mut self, window: &WriteCounts) {
        let was_idle = std::mem::replace(&mut self.is_idle, window.total() < MIN_WRITES);
        self.busy = (!self.is_idle).then(|| window.p99());
        if self.is_idle {
            self.share = 1.0;
            return;
        }
        if was_idle {
            return self.begin_low();
        }
        let above = match (self.busy, self.quiet) {
            (Some(busy), Some(quiet)) => busy.as_secs_f64() / quiet.as_secs_f64() - 1.0,
            _ => 0.0,
        };
        let share = if above > self.ratio - 1.0 {
            self.probes = false;
            self.share / 2.0
        } else if above > (self.ratio - 1.0) / 2.0 {
            self.share
        } else if self.probes {
            self.share * 2.0
        } else {
            self.share + (self.share / 10.0).max(MIN_GROWTH)
        };
        self.share = share.clamp(MIN_SHARE, 1.0);
    }

    /// A foreground has appeared.
    fn begin_low(&mut self) {
        (self.share, self.probes) = (self.share.min(FIRST_SHARE), true);
    }

    fn set_quiet(&mut self, now: Duration, window: &WriteCounts) {
        if window.total() < MIN_WRITES {
            self.next_attempt = now + QUIET_EVERY;
            return;
        }
        if self.quiet.is_none() {
            self.begin_low();
        }
        // Half of the new value, because one window is noisy.
        let new = window.p99();
        self.quiet = Some(self.quiet.map_or(new, |quiet| (quiet + new) / 2));
    }

    /// What holds the pass back; `None` if it works all the time.
    pub(super) fn reason(&self) -> Option<String> {
        let (quiet, busy) = self.quiet.zip(self.busy).filter(|_| self.share < 1.0)?;
        let millis = |time: Duration| time.as_secs_f64() * 1_000.0;
        Some(format!(
            "the service's writes: their 99th percentile is {:.1} ms with this work and {:.1} ms without it, so it works \
             {:.0} % of the time",
            millis(busy),
            millis(quiet),
            self.share * 100.0
        ))
    }
}

/// How long to rest so that the batch takes this share of the time.
fn rest_after(batch: Duration, share: f64) -> Duration {
    batch.mul_f64((1.0 - share) / share)
}

#[cfg(test)]
mod tests;
