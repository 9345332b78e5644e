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
//! The first quarter of a second of work is free, so a pass over a small table never rests.

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
/// A pass never works less than this, so that it ends.
const MIN_SHARE: f64 = 0.05;
/// The share with which a pass begins beside a foreground. Its effect is not known yet, and a window at a share that is
/// too high has enough slow transactions to move the 99th percentile of a minute.
const FIRST_SHARE: f64 = 0.1;
/// How long a pass works before it rests for the first time.
const FREE_WORK: Duration = Duration::from_millis(250);
/// A tenth of the share, but at least this.
const MIN_GROWTH: f64 = 0.01;

/// The governor of one pass on one instance. Its workers share it.
#[derive(Debug)]
pub(super) struct Governor {
    ratio: f64,
    /// What is left of the work that is free.
    free: Duration,
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
            free: FREE_WORK,
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

    /// The 99th percentile of the service's writes without the pass, once it is known.
    pub(super) fn quiet(&self) -> Option<Duration> {
        self.quiet
    }

    /// How long to rest after a batch that took this long. `now` is the time by the wall clock, since any moment that all
    /// instances agree on. `writes` are the counts of the service's transactions.
    pub(super) fn rest(&mut self, now: Duration, batch: Duration, writes: WriteCounts) -> Duration {
        if writes.total() != self.seen.0 {
            self.seen = (writes.total(), Some(now));
        }
        if !self.free.is_zero() {
            self.free = self.free.saturating_sub(batch);
            return Duration::ZERO;
        }
        if self.window.as_ref().is_some_and(|(_, since, _)| now < *since) {
            // The clock was set back.
            (self.window, self.next_attempt) = (None, Duration::ZERO);
        }
        let into_period = Duration::from_nanos((now.as_nanos() % QUIET_EVERY.as_nanos()) as u64);
        // Without a foreground there is nothing to measure.
        let has_foreground = writes.total() >= MIN_WRITES && !self.is_idle;
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
            _ => batch.mul_f64((1.0 - self.share) / self.share),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::runtime::WriteTimes;

    /// One that has used up its free work.
    fn governor() -> Governor {
        Governor { free: Duration::ZERO, ..Governor::new(1.2, &WriteTimes::new().counts()) }
    }

    #[test]
    fn the_first_quarter_of_a_second_of_work_is_free() {
        let mut service = Service::new(1_000.0, 4.0);
        service.pass(Duration::from_secs(5), 1.0);
        let mut governor = Governor::new(1.2, &service.times.counts());
        let batch = Duration::from_millis(50);
        for _ in 0..5 {
            assert_eq!(governor.rest(service.now, batch, service.times.counts()), Duration::ZERO);
        }
        assert_eq!(governor.rest(service.now, batch, service.times.counts()), SETTLE);
    }

    #[test]
    fn a_pass_beside_a_foreground_begins_low() {
        let mut service = Service::new(1_000.0, 40.0);
        service.pass(Duration::from_secs(5), 1.0);
        let (mut governor, before) = (governor(), service.times.counts());
        service.work(&mut governor, 60);
        // At the first share of 0.1 writes take five times as long as without the pass.
        let p99 = service.times.counts().since(&before).p99();
        assert!(p99 < Duration::from_millis(20).mul_f64(1.09), "{p99:?}");
    }

    #[test]
    fn a_single_write_is_seen_for_some_time() {
        let (mut governor, mut service) = (governor(), Service::new(0.0, 1.0));
        let sees = |governor: &mut Governor, service: &Service| {
            governor.rest(service.now, Duration::ZERO, service.times.counts());
            governor.has_seen_writes(service.now)
        };
        assert!(!sees(&mut governor, &service));
        service.times.record(Duration::from_millis(4));
        assert!(sees(&mut governor, &service));
        service.now += LONGEST_WINDOW;
        assert!(sees(&mut governor, &service));
        service.now += LONGEST_WINDOW;
        assert!(!sees(&mut governor, &service));
    }

    #[test]
    fn writes_from_before_the_pass_are_not_beside_it() {
        let mut service = Service::new(1_000.0, 1.0);
        service.pass(Duration::from_secs(5), 1.0);
        let mut governor = Governor::new(1.2, &service.times.counts());
        governor.rest(service.now, Duration::ZERO, service.times.counts());
        assert!(!governor.has_seen_writes(service.now));
        service.times.record(Duration::from_millis(4));
        governor.rest(service.now, Duration::ZERO, service.times.counts());
        assert!(governor.has_seen_writes(service.now));
    }

    #[test]
    fn writes_that_began_beside_a_batch_are_not_quiet() {
        let (mut governor, mut service) = (governor(), Service::new(1_000.0, 1.0));
        service.pass(Duration::from_secs(1), 1.0);
        let batch = Duration::from_millis(50);
        assert_eq!(governor.rest(service.now, batch, service.times.counts()), SETTLE);
        service.pass(SETTLE, 100.0);
        assert_eq!(governor.rest(service.now, Duration::ZERO, service.times.counts()), QUIET - SETTLE);
        service.pass(QUIET - SETTLE, 1.0);
        governor.rest(service.now, Duration::ZERO, service.times.counts());
        assert!(governor.quiet.is_some_and(|quiet| quiet < Duration::from_millis(5)), "{:?}", governor.quiet);
    }

    #[test]
    fn a_share_without_effect_doubles() {
        let mut service = Service::new(1_000.0, 1.0);
        service.pass(Duration::from_secs(5), 1.0);
        let mut governor = governor();
        service.work(&mut governor, 10);
        assert!(governor.share >= 1.0, "{}", governor.share);
    }

    /// A service whose writes take 4 ms, and `slowdown` times as long while batches of 50 ms run.
    struct Service {
        times: WriteTimes,
        per_second: f64,
        slowdown: f64,
        now: Duration,
        worked: Duration,
    }

    impl Service {
        fn new(per_second: f64, slowdown: f64) -> Self {
            let now = Duration::from_secs(1_000_005);
            Self { times: WriteTimes::new(), per_second, slowdown, now, worked: Duration::ZERO }
        }

        fn pass(&mut self, time: Duration, slowdown: f64) {
            self.now += time;
            let writes = (self.per_second * time.as_secs_f64()).round() as u64;
            (0..writes).for_each(|_| self.times.record(Duration::from_millis(4).mul_f64(slowdown)));
        }

        /// Works under the governor for this long, and returns the share of the time in which it worked.
        fn work(&mut self, governor: &mut Governor, seconds: u64) -> f64 {
            let (began, worked) = (self.now, self.worked);
            while self.now - began < Duration::from_secs(seconds) {
                let batch = Duration::from_millis(50);
                // Writes are slower the more of the time batches run.
                let load = 1.0 + (self.slowdown - 1.0) * governor.share;
                self.pass(batch, load);
                self.worked += batch;
                let mut rest = governor.rest(self.now, batch, self.times.counts());
                while !rest.is_zero() {
                    let is_quiet = matches!(governor.window, Some((Window::Settling | Window::Quiet, ..)));
                    self.pass(rest, if is_quiet { 1.0 } else { load });
                    rest = governor.rest(self.now, Duration::ZERO, self.times.counts());
                }
            }
            (self.worked - worked).as_secs_f64() / (self.now - began).as_secs_f64()
        }
    }

    #[test]
    fn writes_stay_within_the_ratio_and_the_rest_is_used() {
        let mut service = Service::new(1_000.0, 4.0);
        // The service runs already.
        service.pass(Duration::from_secs(5), 1.0);
        let mut governor = governor();
        service.work(&mut governor, 60);
        let before = service.times.counts();
        let share = service.work(&mut governor, 300);
        // The ratio of 1.2 is reached at a share of 0.07. A percentile is exact to 9 %.
        assert!((0.03..0.12).contains(&share), "{share}");
        let writes = service.times.counts().since(&before);
        assert!(writes.p99() < Duration::from_millis(4).mul_f64(1.2 * 1.09), "{:?}", writes.p99());
        assert!(governor.reason().is_some_and(|reason| reason.contains("4.")), "{:?}", governor.reason());

        // The load ends.
        service.slowdown = 1.0;
        service.work(&mut governor, 60);
        let share = service.work(&mut governor, 60);
        assert!(share > 0.9, "{share}");
        assert_eq!(governor.reason(), None);
    }

    #[test]
    fn without_a_foreground_a_pass_never_rests() {
        let mut service = Service::new(0.0, 4.0);
        let mut governor = governor();
        assert!(service.work(&mut governor, 120) > 0.999);
        // A foreground that appears later is protected.
        service.per_second = 1_000.0;
        service.work(&mut governor, 60);
        let share = service.work(&mut governor, 60);
        assert!(share < 0.15, "{share}");
        // It no longer counts when it is gone.
        service.per_second = 0.0;
        service.work(&mut governor, 150);
        assert!(service.work(&mut governor, 27) > 0.9);
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_stop_a_pass() {
        let mut service = Service::new(1_000.0, 4.0);
        service.pass(Duration::from_secs(1), 1.0);
        let mut governor = governor();
        let batch = Duration::from_millis(50);
        assert_eq!(governor.rest(service.now, batch, service.times.counts()), SETTLE);
        service.now -= Duration::from_secs(3_600);
        assert_eq!(governor.rest(service.now, batch, service.times.counts()), SETTLE);
    }

    #[test]
    fn a_service_that_is_slow_by_itself_does_not_stop_a_pass() {
        let mut service = Service::new(1_000.0, 1_000.0);
        service.pass(Duration::from_secs(1), 1.0);
        let mut governor = governor();
        service.work(&mut governor, 60);
        assert!(service.work(&mut governor, 300) >= MIN_SHARE * 0.8);
    }
}
