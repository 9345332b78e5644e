//! Counts of decisions, without a line of memory that two cores fight for.

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use arc_swap::ArcSwap;
use prometheus::{
    core::{Collector, Desc},
    proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType},
};

use super::names::{Name, NameMap};

const SHARDS: usize = 8;

/// A counter in pieces; a thread always adds to the same piece.
#[derive(Debug, Default)]
pub(super) struct Sharded([Piece; SHARDS]);

// Two lines of 64 bytes: processors fetch them in pairs.
#[repr(align(128))]
#[derive(Debug, Default)]
struct Piece(AtomicU64);

impl Sharded {
    pub(super) fn add_one(&self) {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static MINE: Cell<usize> = const { Cell::new(usize::MAX) };
        }
        // A thread that is being torn down has no cell any more; any piece will do.
        let mine = MINE
            .try_with(|mine| {
                if mine.get() == usize::MAX {
                    mine.set(NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS);
                }
                mine.get()
            })
            .unwrap_or(0);
        if let Some(Piece(count)) = self.0.get(mine) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn sum(&self) -> u64 {
        self.0.iter().map(|p| p.0.load(Ordering::Relaxed)).sum()
    }
}

#[derive(Debug, Default)]
struct Series {
    enabled: Sharded,
    disabled: Sharded,
    defaulted: Sharded,
}

/// What was decided, per flag.
#[derive(Debug, Default)]
pub(super) struct Tally(ArcSwap<NameMap<Arc<Series>>>);

impl Tally {
    pub(super) fn decided(&self, name: &Name<'static>, enabled: bool) {
        self.with(name, |series| {
            if enabled {
                series.enabled.add_one();
            } else {
                series.disabled.add_one();
            }
        });
    }

    /// The declared default had to do.
    pub(super) fn defaulted(&self, name: &Name<'static>) {
        self.with(name, |series| series.defaulted.add_one());
    }

    fn with(&self, name: &Name<'static>, count: impl Fn(&Series)) {
        if let Some(series) = self.0.load().get(name) {
            return count(series);
        }
        self.0.rcu(|all| {
            let mut all = NameMap::clone(all);
            if all.get(name).is_none() {
                all.insert(name.text, Arc::default());
            }
            all
        });
        if let Some(series) = self.0.load().get(name) {
            count(series);
        }
    }
}

/// When the source last answered, and how often it did.
#[derive(Debug, Default)]
pub(super) struct Fetches {
    pub(super) changed: Sharded,
    pub(super) unchanged: Sharded,
    pub(super) failed: Sharded,
    /// Milliseconds since 1970; 0 before the first success.
    pub(super) last_success: AtomicU64,
}

/// The families of this room.
pub(super) struct Families {
    tally: Arc<Tally>,
    fetches: Option<Arc<Fetches>>,
    descs: Vec<Desc>,
}

const DECISIONS: (&str, &str) =
    ("feature_flag_decisions_total", "Decisions by flag and outcome; a request that asks twice counts once.");
const DEFAULTS: (&str, &str) =
    ("feature_flag_defaults_total", "Decisions for which the default in the code had to do.");
const FETCHES: (&str, &str) = ("feature_flags_fetches_total", "Requests to the flag server by result.");
const LAST_SUCCESS: (&str, &str) = (
    "feature_flags_last_success_timestamp_seconds",
    "When the flag server last answered, in seconds since 1970; 0 for never.",
);

impl Families {
    pub(super) fn new(tally: Arc<Tally>, fetches: Option<Arc<Fetches>>) -> prometheus::Result<Self> {
        let mut families = vec![(DECISIONS, vec!["flag", "enabled"]), (DEFAULTS, vec!["flag"])];
        if fetches.is_some() {
            families.extend([(FETCHES, vec!["result"]), (LAST_SUCCESS, vec![])]);
        }
        let descs = families
            .into_iter()
            .map(|((name, help), labels)| {
                let labels = labels.into_iter().map(str::to_owned).collect();
                Desc::new(name.to_owned(), help.to_owned(), labels, Default::default())
            })
            .collect::<prometheus::Result<_>>()?;
        Ok(Self { tally, fetches, descs })
    }
}

impl Collector for Families {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let all = self.tally.0.load();
        let mut decisions = Vec::new();
        let mut defaults = Vec::new();
        for (flag, series) in all.iter() {
            for (enabled, count) in [("true", &series.enabled), ("false", &series.disabled)] {
                decisions.push(counter(&[("enabled", enabled), ("flag", flag)], count));
            }
            defaults.push(counter(&[("flag", flag)], &series.defaulted));
        }
        let mut families = vec![
            family(DECISIONS, MetricType::COUNTER, decisions),
            family(DEFAULTS, MetricType::COUNTER, defaults),
        ];
        if let Some(fetches) = &self.fetches {
            let results = [
                ("changed", &fetches.changed),
                ("unchanged", &fetches.unchanged),
                ("failed", &fetches.failed),
            ]
            .map(|(result, count)| counter(&[("result", result)], count));
            let mut gauge = Gauge::default();
            gauge.set_value(fetches.last_success.load(Ordering::Relaxed) as f64 / 1000.0);
            families.push(family(FETCHES, MetricType::COUNTER, results.into()));
            let gauge = vec![Metric::from_gauge(gauge)];
            families.push(family(LAST_SUCCESS, MetricType::GAUGE, gauge));
        }
        families.retain(|family| !family.get_metric().is_empty());
        families
    }
}

fn family((name, help): (&str, &str), kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

fn counter(labels: &[(&str, &str)], count: &Sharded) -> Metric {
    let labels = labels
        .iter()
        .map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        })
        .collect();
    let mut counter = Counter::default();
    counter.set_value(count.sum() as f64);
    let mut metric = Metric::from_label(labels);
    metric.set_counter(counter);
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_many_threads_add_up() {
        let tally = Arc::new(Tally::default());
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        tally.decided(&Name::new("a"), true);
                        tally.defaulted(&Name::new("b"));
                    }
                });
            }
        });
        let all = tally.0.load();
        assert_eq!(all.get(&Name::new("a")).unwrap().enabled.sum(), 20_000);
        assert_eq!(all.get(&Name::new("b")).unwrap().defaulted.sum(), 20_000);
    }
}
