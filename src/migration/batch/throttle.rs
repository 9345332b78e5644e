use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::Registry;
use sqlx::{PgPool, Row};
use tokio::time::{Instant, sleep};

use crate::config::Problem;
use crate::ledger::unprepared;

/// Between looks, whether or not it is held up.
const LOOK: Duration = Duration::from_secs(1);
/// Below so many requests between two looks a percentile says nothing.
const FEW: u64 = 50;
const DAY: u32 = 24 * 60;

/// A reason to hold still, in words; `None` to go on.
type Signal = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// When work on the rows holds still, so that others don't feel it: between two batches, outside of any transaction,
/// for no longer than the reason lasts.
///
/// What it is held up by is in `cutover status`, and `cutover_migration_throttled_seconds_total` counts it. One statement a second
/// and worker asks the database about all of it.
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
#[must_use = "it holds nothing up until a plan is given it"]
pub struct Throttle {
    lag: Option<u64>,
    lock_waits: Option<u32>,
    hours: Vec<(String, String)>,
    signals: Vec<(&'static str, Signal)>,
}

impl Default for Throttle {
    fn default() -> Self {
        Self { lag: Some(64 << 20), lock_waits: Some(10), hours: Vec::new(), signals: Vec::new() }
    }
}

impl Throttle {
    /// Holds nothing up.
    pub fn off() -> Self {
        Self { lag: None, lock_waits: None, hours: Vec::new(), signals: Vec::new() }
    }

    /// Holds while any standby has more than so many bytes of WAL still to replay; `None`: standbys don't matter.
    /// Default 64 MB: seconds of a busy server, and what a standby makes up for in seconds.
    ///
    /// The positions of standbys are shown to members of `pg_monitor` only. A role that is none sees that there are
    /// some and nothing else, which is warned of, and not taken for a lag.
    pub fn standby_lag(mut self, bytes: Option<u64>) -> Self {
        self.lag = bytes;
        self
    }

    /// Holds while more than so many sessions of this database wait for locks on rows or tables; `None`: never. Default
    /// 10: a few always may. Of other roles' sessions only a member of `pg_monitor` sees that they wait.
    pub fn lock_waits(mut self, sessions: Option<u32>) -> Self {
        self.lock_waits = sessions;
        self
    }

    /// Works only between these times of day, UTC by the database's clock; may be given several times. `from` after `to`
    /// is over midnight.
    pub fn only_between(mut self, from: &str, to: &str) -> Self {
        self.hours.push((from.to_owned(), to.to_owned()));
        self
    }

    /// Holds while `signal` gives a reason. Asked once a second, so it has to answer from memory.
    pub fn hold_while(mut self, signal: impl Fn() -> Option<String> + Send + Sync + 'static) -> Self {
        self.signals.push(("signal", Arc::new(signal)));
        self
    }

    /// Holds while the slowest hundredth of this instance's requests of the last second took longer than `p99`, by
    /// `http_request_duration_seconds` in this registry (so one of its bounds is the best choice). Fewer than 50 requests
    /// say nothing.
    pub fn slow_requests(mut self, registry: &Registry, p99: Duration) -> Self {
        let (registry, last) = (registry.clone(), Mutex::new(Counted::default()));
        let signal = move || {
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            // Several workers ask: one that has just asked has the answer for all.
            if last.at.is_none_or(|at| at.elapsed() >= LOOK / 2) {
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

    pub(crate) fn check(&self, problems: &mut Vec<Problem>) {
        for (from, to) in &self.hours {
            for time in [from, to] {
                if minutes(time).is_none() {
                    let problem = format!("{time:?} is no time of day: write for example 22:00");
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
            .field("lag", &self.lag)
            .field("lock_waits", &self.lock_waits)
            .field("hours", &self.hours)
            .field("signals", &self.signals.len())
            .finish()
    }
}

/// Why work is held up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    /// For the metric: `standby_lag`, `lock_waits`, `hours`, `signal` or `slow_requests`.
    pub(crate) kind: &'static str,
    /// In words.
    pub(crate) why: String,
}

/// Requests as they were counted last, and what came of it.
#[derive(Debug, Default)]
struct Counted {
    at: Option<Instant>,
    buckets: Vec<(f64, u64)>,
    verdict: Option<String>,
}

/// A worker's own memory of when it looked.
#[derive(Debug, Default)]
pub(crate) struct Looks {
    last: Option<Instant>,
    is_warned: bool,
}

/// What the database says of others.
#[derive(Debug, Default)]
struct Seen {
    standby: Option<String>,
    lag: Option<i64>,
    hidden: i64,
    waits: i64,
    minute: u32,
}

impl Throttle {
    /// Whether to hold still now; asked before every batch, answers at once while the last look is fresh.
    pub(crate) async fn held(&self, looks: &mut Looks, pool: &PgPool) -> Result<Option<Held>, sqlx::Error> {
        if self.is_off() || looks.last.is_some_and(|last| last.elapsed() < LOOK) {
            return Ok(None);
        }
        looks.last = Some(Instant::now());
        let asks = self.lag.is_some() || self.lock_waits.is_some() || !self.hours.is_empty();
        let seen = if asks { look(pool).await? } else { Seen::default() };
        if seen.hidden > 0 && self.lag.is_some() && !looks.is_warned {
            looks.is_warned = true;
            tracing::warn!(
                standbys = seen.hidden,
                "this role may not see how far standbys are: `grant pg_monitor` to it, or set `standby_lag(None)`"
            );
        }
        Ok(self.judge(&seen))
    }

    /// Until the next look.
    pub(crate) async fn pause() -> Duration {
        sleep(LOOK).await;
        LOOK
    }

    fn judge(&self, seen: &Seen) -> Option<Held> {
        let held = |kind, why| Some(Held { kind, why });
        if !self.is_time(seen.minute) {
            let hours: Vec<_> = self.hours.iter().map(|(from, to)| format!("{from} to {to}")).collect();
            return held("hours", format!("works from {} UTC only", hours.join(" and ")));
        }
        if let (Some(most), Some(lag)) = (self.lag, seen.lag)
            && lag > i64::try_from(most).unwrap_or(i64::MAX)
        {
            let standby = seen.standby.as_deref().unwrap_or("unnamed");
            return held("standby_lag", format!("standby {standby} has {} MB to replay", lag >> 20));
        }
        if let Some(most) = self.lock_waits
            && seen.waits > i64::from(most)
        {
            return held("lock_waits", format!("{} sessions wait for locks", seen.waits));
        }
        // All of them, so that each sees every interval.
        let reasons: Vec<_> = self.signals.iter().map(|(kind, signal)| (*kind, signal())).collect();
        reasons.into_iter().find_map(|(kind, why)| Some(Held { kind, why: why? }))
    }

    fn is_time(&self, minute: u32) -> bool {
        let within = |(from, to): &(String, String)| {
            let (Some(from), Some(to)) = (minutes(from), minutes(to)) else { return true };
            if from < to { (from..to).contains(&minute) } else { minute >= from || minute < to }
        };
        self.hours.is_empty() || self.hours.iter().any(within)
    }
}

async fn look(pool: &PgPool) -> Result<Seen, sqlx::Error> {
    let row = unprepared::query(
        "select s.standby, s.lag, s.hidden, \
                (select count(*) from pg_stat_activity where datname = current_database() \
                    and wait_event_type = 'Lock' and wait_event in ('transactionid', 'tuple', 'relation')) as waits, \
                extract(epoch from (clock_timestamp() at time zone 'UTC')::time)::int / 60 as minute \
         from (select max(application_name) filter (where replay_lsn = (select min(replay_lsn) from pg_stat_replication)) \
                   as standby, \
                   pg_wal_lsn_diff(pg_current_wal_lsn(), min(replay_lsn))::bigint as lag, \
                   count(*) filter (where state is null) as hidden \
               from pg_stat_replication) s",
    )
    .fetch_one(pool)
    .await?;
    Ok(Seen {
        standby: row.try_get("standby")?,
        lag: row.try_get("lag")?,
        hidden: row.try_get("hidden")?,
        waits: row.try_get("waits")?,
        minute: u32::try_from(row.try_get::<i32, _>("minute")?).unwrap_or(0),
    })
}

/// Minutes since midnight of a text like 22:00.
fn minutes(text: &str) -> Option<u32> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |text: &str| (text.len() == 2).then(|| text.parse::<u32>().ok()).flatten();
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    (minutes < 60 && hours * 60 + minutes < DAY).then_some(hours * 60 + minutes)
}

/// How many requests there have been up to each bound, over all series; the last one is all of them.
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

/// The share of the requests since `before` that took longer than a bound; `None` when there were too few.
fn share_above(before: &[(f64, u64)], now: &[(f64, u64)], seconds: f64) -> Option<f64> {
    let since = |bound: f64| {
        let of =
            |all: &[(f64, u64)]| all.iter().find(|(other, _)| *other == bound).map_or(0, |(_, count)| *count);
        of(now).saturating_sub(of(before))
    };
    let all = since(f64::INFINITY);
    let bound = now.iter().map(|(bound, _)| *bound).find(|bound| *bound >= seconds)?;
    (!before.is_empty() && all >= FEW).then(|| 1.0 - since(bound) as f64 / all as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_may_go_over_midnight_and_has_to_be_readable() {
        let night = Throttle::off().only_between("22:00", "05:30").only_between("12:00", "13:00");
        for (minute, works) in
            [(0, true), (329, true), (330, false), (719, false), (720, true), (1_320, true)]
        {
            assert_eq!(night.is_time(minute), works, "{minute}");
        }
        assert_eq!(
            night.judge(&Seen { minute: 400, ..Seen::default() }).map(|held| held.kind),
            Some("hours")
        );
        let mut problems = Vec::new();
        Throttle::off().only_between("25:00", "5:30").only_between("07:00", "07:00").check(&mut problems);
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(problems.iter().all(|problem| problem.field == "throttle.only_between"));
    }

    #[test]
    fn each_reason_holds_until_it_is_gone() {
        let throttle = Throttle::default();
        let lagging = Seen { lag: Some(65 << 20), standby: Some("reader".into()), ..Seen::default() };
        let held = throttle.judge(&lagging).expect("held");
        assert_eq!((held.kind, &*held.why), ("standby_lag", "standby reader has 65 MB to replay"));
        assert_eq!(throttle.judge(&Seen { lag: Some(64 << 20), ..Seen::default() }), None);
        let waiting = Seen { waits: 11, ..Seen::default() };
        assert_eq!(throttle.judge(&waiting).map(|held| held.kind), Some("lock_waits"));
        assert_eq!(throttle.clone().lock_waits(None).judge(&waiting), None);
        assert_eq!(throttle.clone().standby_lag(None).judge(&lagging), None);
        let told = throttle.hold_while(|| Some("the queue is long".into()));
        assert_eq!(told.judge(&Seen::default()).map(|held| held.why), Some("the queue is long".into()));
    }

    #[tokio::test(start_paused = true)]
    async fn workers_that_ask_at_once_are_told_the_same() {
        let registry = Registry::new();
        let options = prometheus::HistogramOpts::new("http_request_duration_seconds", "Duration.");
        let requests =
            prometheus::Histogram::with_opts(options.buckets(vec![0.1, 0.25])).expect("a histogram");
        registry.register(Box::new(requests.clone())).expect("registered");
        let throttle = Throttle::off().slow_requests(&registry, Duration::from_millis(250));
        let ask = || throttle.judge(&Seen::default()).map(|held| held.kind);
        assert_eq!(ask(), None);
        (0..FEW).for_each(|_| requests.observe(1.0));
        tokio::time::advance(LOOK).await;
        assert_eq!([ask(), ask()], [Some("slow_requests"); 2]);
        tokio::time::advance(LOOK).await;
        assert_eq!(ask(), None);
    }

    #[test]
    fn requests_count_only_since_the_last_look() {
        let before = vec![(0.1, 1_000), (0.25, 1_000), (f64::INFINITY, 1_000)];
        let now = vec![(0.1, 1_050), (0.25, 1_090), (f64::INFINITY, 1_100)];
        let share =
            |seconds| share_above(&before, &now, seconds).map(|share| (share * 1_000.0).round() as i32);
        assert_eq!(share(0.25), Some(100));
        assert_eq!(share(0.1), Some(500));
        // Between two bounds the next one counts.
        assert_eq!(share(0.2), Some(100));
        assert_eq!(share_above(&before, &before, 0.25), None);
        assert_eq!(share_above(&[], &now, 0.25), None);
    }
}
