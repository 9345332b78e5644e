use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::Registry;
use sqlx::{FromRow, PgPool};
use tokio::time::{Instant, sleep};

use super::governor::Governor;
use crate::config::Problem;
use crate::ledger::standbys::{standbys, wal_position};
use crate::ledger::unprepared;
use crate::migration::runtime::WriteCounts;

/// Time between two checks, throttled or not.
const INTERVAL: Duration = Duration::from_secs(1);
/// With fewer requests between two checks a percentile is not meaningful.
const MIN_REQUESTS: u64 = 50;
const MINUTES_PER_DAY: u32 = 24 * 60;

/// Returns the reason to pause, or `None`.
type Signal = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// When backfills and scans pause so that they do not slow down other work. They pause between two batches, outside of any
/// transaction, for as long as the reason lasts.
///
/// `cutover status` shows the reason, and the metric `cutover_migration_throttled_seconds_total` counts the time. Each
/// worker sends one query per second to the database.
///
/// ```
/// use std::time::Duration;
/// use cutover::migration::Throttle;
///
/// # fn f(metrics: &cutover::metrics::Metrics) -> Throttle {
/// Throttle::default()
///     .standby_lag(Some(16 << 20))
///     .slow_requests(metrics.registry(), Duration::from_millis(250))
///     .only_between("22:00", "05:30")
/// # }
/// ```
#[derive(Clone)]
#[must_use = "a throttle has no effect until it is given to a plan"]
pub struct Throttle {
    /// See [`Throttle::foreground`].
    ratio: Option<f64>,
    lag: Option<u64>,
    lock_waits: Option<u32>,
    hours: Vec<(String, String)>,
    signals: Vec<(&'static str, Signal)>,
}

impl Default for Throttle {
    fn default() -> Self {
        Self {
            ratio: Some(1.2),
            lag: Some(64 << 20),
            lock_waits: Some(10),
            hours: Vec::new(),
            signals: Vec::new(),
        }
    }
}

impl Throttle {
    /// Never pauses.
    pub fn off() -> Self {
        Self { ratio: None, lag: None, lock_waits: None, hours: Vec::new(), signals: Vec::new() }
    }

    /// Keeps the 99th percentile of this instance's pinned transactions, from begin to commit, within `ratio` of its value
    /// without the pass, and uses the rest of the time; `None` ignores them. Default 1.2.
    ///
    /// For this, the pass rests for two seconds in every 30 seconds, to measure the value without it, for the first time
    /// after a quarter of a second of work. It begins with a tenth of the time, and doubles that until the ratio is reached
    /// for the first time.
    /// An instance with fewer than 50 transactions in five seconds does not rest. `cutover status` shows the share of the
    /// time in which the pass works.
    pub fn foreground(mut self, ratio: Option<f64>) -> Self {
        self.ratio = ratio;
        self
    }

    /// Pauses while any standby has more than this many bytes of WAL to replay; `None` ignores standbys. Default 64 MB,
    /// which a standby replays in seconds.
    ///
    /// Only members of `pg_monitor` see the positions of standbys. For another role the check is skipped and a warning is
    /// logged.
    pub fn standby_lag(mut self, bytes: Option<u64>) -> Self {
        self.lag = bytes;
        self
    }

    /// Pauses while more than this many sessions of the database wait for locks on rows or tables; `None` ignores lock
    /// waits. Default 10. Only members of `pg_monitor` see the waits of other roles' sessions.
    pub fn lock_waits(mut self, sessions: Option<u32>) -> Self {
        self.lock_waits = sessions;
        self
    }

    /// Works only between these times of day, in UTC by the database's clock. Several calls add several periods. A period
    /// whose `from` is after its `to` spans midnight.
    pub fn only_between(mut self, from: &str, to: &str) -> Self {
        self.hours.push((from.to_owned(), to.to_owned()));
        self
    }

    /// Pauses while `signal` returns a reason. It is called once a second in an async task, so it must not block.
    pub fn hold_while(mut self, signal: impl Fn() -> Option<String> + Send + Sync + 'static) -> Self {
        self.signals.push(("signal", Arc::new(signal)));
        self
    }

    /// Pauses while the 99th percentile of this instance's requests of the last second is above `p99`, according to
    /// `http_request_duration_seconds` in this registry. A bound of a bucket of that histogram is the best choice. With
    /// fewer than 50 requests in that second it does not pause.
    pub fn slow_requests(mut self, registry: &Registry, p99: Duration) -> Self {
        let (registry, last) = (registry.clone(), Mutex::new(Counted::default()));
        let signal = move || {
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            // All workers use the result of the latest check.
            if last.at.is_none_or(|at| at.elapsed() >= INTERVAL / 2) {
                let buckets = buckets(&registry);
                let slow =
                    share_above(&last.buckets, &buckets, p99.as_secs_f64()).filter(|share| *share > 0.01);
                let text = |share| format!("{:.1} % of requests take longer than {p99:?}", share * 100.0);
                *last = Counted { at: Some(Instant::now()), buckets, verdict: slow.map(text) };
            }
            last.verdict.clone()
        };
        self.signals.push(("slow_requests", Arc::new(signal)));
        self
    }

    /// The governor of a pass that begins now, after these writes of the service.
    pub(super) fn governor(&self, writes: &WriteCounts) -> Option<Governor> {
        self.ratio.map(|ratio| Governor::new(ratio, writes))
    }

    pub(crate) fn check(&self, problems: &mut Vec<Problem>) {
        if let Some(ratio) = self.ratio.filter(|ratio| !(*ratio > 1.0 && ratio.is_finite())) {
            let problem = format!("{ratio} is not above 1: use for example 1.2");
            problems.push(Problem::new("throttle.foreground", problem));
        }
        for (from, to) in &self.hours {
            for time in [from, to] {
                if minutes(time).is_none() {
                    let problem = format!("{time:?} is not a time of day; write for example 22:00");
                    problems.push(Problem::new("throttle.only_between", problem));
                }
            }
            if minutes(from).is_some() && minutes(from) == minutes(to) {
                let problem = format!("from {from} to {to} is no time at all: leave it out to work all day");
                problems.push(Problem::new("throttle.only_between", problem));
            }
        }
    }

    fn is_off(&self) -> bool {
        self.lag.is_none() && self.lock_waits.is_none() && self.hours.is_empty() && self.signals.is_empty()
    }
}

impl fmt::Debug for Throttle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Throttle")
            .field("ratio", &self.ratio)
            .field("lag", &self.lag)
            .field("lock_waits", &self.lock_waits)
            .field("hours", &self.hours)
            .field("signals", &self.signals.len())
            .finish()
    }
}

/// Why a pass is throttled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ThrottleReason {
    /// For the metric: `standby_lag`, `lock_waits`, `hours`, `signal` or `slow_requests`.
    pub(crate) kind: &'static str,
    /// In words.
    pub(crate) text: String,
}

/// The last count of requests, and the reason that followed from it.
#[derive(Debug, Default)]
struct Counted {
    at: Option<Instant>,
    buckets: Vec<(f64, u64)>,
    verdict: Option<String>,
}

/// When a worker last checked, and whether it has logged the warning.
#[derive(Debug, Default)]
pub(crate) struct ThrottleState {
    last: Option<Instant>,
    is_warned: bool,
}

/// The load of the database.
#[derive(Debug, Default, FromRow)]
struct Load {
    standby: Option<String>,
    lag: Option<i64>,
    hidden: i64,
    waits: i64,
    /// Since midnight, in UTC.
    #[sqlx(try_from = "i32")]
    minute: u32,
}

impl Throttle {
    /// The reason to pause now. Called before every batch; returns `None` without a query within a second of the last check.
    pub(crate) async fn check_now(
        &self,
        state: &mut ThrottleState,
        pool: &PgPool,
    ) -> Result<Option<ThrottleReason>, sqlx::Error> {
        if self.is_off() || state.last.is_some_and(|last| last.elapsed() < INTERVAL) {
            return Ok(None);
        }
        state.last = Some(Instant::now());
        let asks = self.lag.is_some() || self.lock_waits.is_some() || !self.hours.is_empty();
        let load = if asks { read_load(pool).await? } else { Load::default() };
        if load.hidden > 0 && self.lag.is_some() && !state.is_warned {
            state.is_warned = true;
            tracing::warn!(
                standbys = load.hidden,
                "this role cannot see the positions of standbys: run `grant pg_monitor to …`, or set `standby_lag(None)`"
            );
        }
        Ok(self.judge(&load))
    }

    /// Waits until the next check, and returns how long that is.
    pub(crate) async fn pause() -> Duration {
        sleep(INTERVAL).await;
        INTERVAL
    }

    fn judge(&self, load: &Load) -> Option<ThrottleReason> {
        let held = |kind, text| Some(ThrottleReason { kind, text });
        if !self.is_time(load.minute) {
            let hours: Vec<_> = self.hours.iter().map(|(from, to)| format!("{from} to {to}")).collect();
            return held("hours", format!("outside of the working hours ({} UTC)", hours.join(" and ")));
        }
        if let (Some(most), Some(lag)) = (self.lag, load.lag)
            && lag > i64::try_from(most).unwrap_or(i64::MAX)
        {
            let standby = load.standby.as_deref().unwrap_or("unnamed");
            return held("standby_lag", format!("standby {standby} has {} MB to replay", lag >> 20));
        }
        if let Some(most) = self.lock_waits
            && load.waits > i64::from(most)
        {
            return held("lock_waits", format!("{} sessions wait for locks", load.waits));
        }
        // Every signal is called, so that each sees every interval.
        let reasons: Vec<_> = self.signals.iter().map(|(kind, signal)| (*kind, signal())).collect();
        reasons.into_iter().find_map(|(kind, text)| Some(ThrottleReason { kind, text: text? }))
    }

    fn is_time(&self, minute: u32) -> bool {
        let within = |(from, to): &(String, String)| {
            let (Some(from), Some(to)) = (minutes(from), minutes(to)) else { return true };
            if from < to { (from..to).contains(&minute) } else { minute >= from || minute < to }
        };
        self.hours.is_empty() || self.hours.iter().any(within)
    }
}

async fn read_load(pool: &PgPool) -> Result<Load, sqlx::Error> {
    let load = concat!(
        "with standbys as materialized ",
        standbys!(),
        " select s.standby, s.lag, s.hidden, \
                (select count(*) from pg_stat_activity where datname = current_database() \
                    and wait_event_type = 'Lock' and wait_event in ('transactionid', 'tuple', 'relation')) as waits, \
                extract(epoch from (clock_timestamp() at time zone 'UTC')::time)::int / 60 as minute \
         from (select max(application_name) filter (where replay_lsn = (select min(replay_lsn) from standbys)) \
                   as standby, \
                   pg_wal_lsn_diff(",
        wal_position!(),
        ", min(replay_lsn))::bigint as lag, \
                   count(*) filter (where state is null) as hidden \
               from standbys) s"
    );
    unprepared::ask_one(pool, load).await
}

/// Minutes since midnight of a text such as 22:00.
fn minutes(text: &str) -> Option<u32> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |text: &str| (text.len() == 2).then(|| text.parse::<u32>().ok()).flatten();
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    (minutes < 60 && hours * 60 + minutes < MINUTES_PER_DAY).then_some(hours * 60 + minutes)
}

/// The number of requests up to each bound, over all series. The last bound is infinity.
fn buckets(registry: &Registry) -> Vec<(f64, u64)> {
    let mut sums: Vec<(f64, u64)> = Vec::new();
    for family in registry.gather() {
        if family.name() != "http_request_duration_seconds" {
            continue;
        }
        for metric in family.get_metric() {
            let histogram = metric.get_histogram();
            let bounds = histogram.get_bucket().iter().map(|one| (one.upper_bound(), one.cumulative_count()));
            for (bound, count) in bounds.chain([(f64::INFINITY, histogram.get_sample_count())]) {
                match sums.iter_mut().find(|(other, _)| *other == bound) {
                    Some((_, sum)) => *sum += count,
                    None => sums.push((bound, count)),
                }
            }
        }
    }
    sums.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    sums
}

/// The share of the requests since `before` that took longer than a bound; `None` if there were too few.
fn share_above(before: &[(f64, u64)], now: &[(f64, u64)], seconds: f64) -> Option<f64> {
    let since = |bound: f64| {
        let of =
            |all: &[(f64, u64)]| all.iter().find(|(other, _)| *other == bound).map_or(0, |(_, count)| *count);
        of(now).saturating_sub(of(before))
    };
    let all = since(f64::INFINITY);
    let bound = now.iter().map(|(bound, _)| *bound).find(|bound| *bound >= seconds)?;
    (!before.is_empty() && all >= MIN_REQUESTS).then(|| 1.0 - since(bound) as f64 / all as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn working_hours_can_span_midnight() {
        let night = Throttle::off().only_between("22:00", "05:30").only_between("12:00", "13:00");
        for (minute, works) in
            [(0, true), (329, true), (330, false), (719, false), (720, true), (1_320, true)]
        {
            assert_eq!(night.is_time(minute), works, "{minute}");
        }
        assert_eq!(
            night.judge(&Load { minute: 400, ..Load::default() }).map(|held| held.kind),
            Some("hours")
        );
        let mut problems = Vec::new();
        Throttle::off().only_between("25:00", "5:30").only_between("07:00", "07:00").check(&mut problems);
        assert_eq!(problems.len(), 3, "{problems:?}");
        let mut ratios = Vec::new();
        for ratio in [1.0, 0.0, f64::NAN, f64::INFINITY] {
            Throttle::off().foreground(Some(ratio)).check(&mut ratios);
        }
        assert_eq!(ratios.len(), 4, "{ratios:?}");
        assert!(problems.iter().all(|problem| problem.field == "throttle.only_between"));
    }

    #[test]
    fn each_reason_pauses_until_it_is_gone() {
        let throttle = Throttle::default();
        let lagging = Load { lag: Some(65 << 20), standby: Some("reader".into()), ..Load::default() };
        let held = throttle.judge(&lagging).expect("held");
        assert_eq!((held.kind, &*held.text), ("standby_lag", "standby reader has 65 MB to replay"));
        assert_eq!(throttle.judge(&Load { lag: Some(64 << 20), ..Load::default() }), None);
        let waiting = Load { waits: 11, ..Load::default() };
        assert_eq!(throttle.judge(&waiting).map(|held| held.kind), Some("lock_waits"));
        assert_eq!(throttle.clone().lock_waits(None).judge(&waiting), None);
        assert_eq!(throttle.clone().standby_lag(None).judge(&lagging), None);
        let told = throttle.hold_while(|| Some("the queue is long".into()));
        assert_eq!(told.judge(&Load::default()).map(|held| held.text), Some("the queue is long".into()));
    }

    #[tokio::test(start_paused = true)]
    async fn workers_that_check_together_get_the_same_answer() {
        let registry = Registry::new();
        let options = prometheus::HistogramOpts::new("http_request_duration_seconds", "Duration.");
        let requests =
            prometheus::Histogram::with_opts(options.buckets(vec![0.1, 0.25])).expect("a histogram");
        registry.register(Box::new(requests.clone())).expect("registered");
        let throttle = Throttle::off().slow_requests(&registry, Duration::from_millis(250));
        let ask = || throttle.judge(&Load::default()).map(|held| held.kind);
        assert_eq!(ask(), None);
        (0..MIN_REQUESTS).for_each(|_| requests.observe(1.0));
        tokio::time::advance(INTERVAL).await;
        assert_eq!([ask(), ask()], [Some("slow_requests"); 2]);
        tokio::time::advance(INTERVAL).await;
        assert_eq!(ask(), None);
    }

    #[test]
    fn only_requests_since_the_last_check_count() {
        let before = vec![(0.1, 1_000), (0.25, 1_000), (f64::INFINITY, 1_000)];
        let now = vec![(0.1, 1_050), (0.25, 1_090), (f64::INFINITY, 1_100)];
        let share =
            |seconds| share_above(&before, &now, seconds).map(|share| (share * 1_000.0).round() as i32);
        assert_eq!(share(0.25), Some(100));
        assert_eq!(share(0.1), Some(500));
        // Between two bounds the upper one counts.
        assert_eq!(share(0.2), Some(100));
        assert_eq!(share_above(&before, &before, 0.25), None);
        assert_eq!(share_above(&[], &now, 0.25), None);
    }
}
