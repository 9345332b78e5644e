use super::*;
use crate::migration::runtime::WriteTimes;

/// One that measures from its first batch on.
fn governor() -> Governor {
    Governor { unmeasured: Duration::ZERO, ..Governor::new(1.2, &WriteTimes::new().counts()) }
}

#[test]
fn a_pass_measures_after_a_quarter_of_a_second_of_work() {
    let mut service = Service::new(1_000.0, 4.0);
    service.pass(Duration::from_secs(5), 1.0);
    let mut governor = Governor::new(1.2, &service.times.counts());
    let batch = Duration::from_millis(50);
    for _ in 0..5 {
        service.pass(batch, 4.0);
        let rest = governor.rest(service.now, batch, service.times.counts());
        assert_eq!(rest, rest_after(batch, FIRST_SHARE));
    }
    service.pass(batch, 4.0);
    assert_eq!(governor.rest(service.now, batch, service.times.counts()), SETTLE);
}

#[test]
fn a_pass_without_writes_beside_it_does_not_rest() {
    let mut service = Service::new(1_000.0, 4.0);
    service.pass(Duration::from_secs(5), 1.0);
    // The service stops.
    service.per_second = 0.0;
    let mut governor = Governor::new(1.2, &service.times.counts());
    assert!(service.work(&mut governor, 60) > 0.999);
}

#[test]
fn a_slow_write_is_known_from_before_the_pass() {
    let mut service = Service::new(1_000.0, 4.0);
    assert_eq!(Governor::new(1.2, &service.times.counts()).slow_write(), None);
    service.pass(Duration::from_secs(5), 1.0);
    let slow = Governor::new(1.2, &service.times.counts()).slow_write();
    assert!(slow.is_some_and(|slow| slow < Duration::from_millis(5)), "{slow:?}");
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
