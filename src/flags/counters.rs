//! Counts of decisions, without a cache line that several cores write.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Metric, MetricFamily, MetricType};

use super::flag::Variant;
use super::names::{Name, NameMap};
use crate::scrape;

pub(super) const SHARDS: usize = 8;

/// The shard of the calling thread, below [`SHARDS`].
pub(super) fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    // A thread that is exiting has no thread-local storage any more; any shard works.
    MINE.try_with(|mine| {
        if mine.get() == usize::MAX {
            mine.set(NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS);
        }
        mine.get()
    })
    .unwrap_or(0)
}

/// A sharded counter. A thread always adds to the same shard.
#[derive(Debug, Default)]
pub(super) struct Sharded([Shard; SHARDS]);

// Two cache lines of 64 bytes, because processors prefetch them in pairs.
#[repr(align(128))]
#[derive(Debug, Default)]
struct Shard(AtomicU64);

impl Sharded {
    pub(super) fn add_one(&self) {
        self.0[shard()].0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn sum(&self) -> u64 {
        self.0.iter().map(|shard| shard.0.load(Ordering::Relaxed)).sum()
    }
}

#[derive(Debug, Default)]
pub(super) struct Series {
    pub(super) enabled: Sharded,
    pub(super) disabled: Sharded,
    defaulted: Sharded,
    /// By the variant's name; `disabled` if there was no variant.
    pub(super) variants: Counts,
}

/// Counts by name. A new name is added without a lock.
#[derive(Debug)]
pub(super) struct Counts<V = Sharded>(ArcSwap<NameMap<Arc<V>>>);

impl<V> Default for Counts<V> {
    fn default() -> Self {
        Self(ArcSwap::from_pointee(NameMap::default()))
    }
}

impl<V: Default> Counts<V> {
    pub(super) fn with(&self, name: &Name<'_>, count: impl Fn(&V)) {
        if let Some(value) = self.0.load().get(name) {
            return count(value);
        }
        self.0.rcu(|all| {
            let mut all = NameMap::clone(all);
            if all.get(name).is_none() {
                all.insert(name.text, Arc::default());
            }
            all
        });
        if let Some(value) = self.0.load().get(name) {
            count(value);
        }
    }

    pub(super) fn for_each(&self, mut look: impl FnMut(&str, &V)) {
        for (name, value) in self.0.load().iter() {
            look(name, value);
        }
    }
}

/// Decision counts per flag.
#[derive(Debug, Default)]
pub(super) struct Tally(pub(super) Counts<Series>);

impl Tally {
    /// `known`: the source answered, and not the declared default.
    pub(super) fn decided(&self, name: &Name<'_>, known: bool, enabled: bool) {
        self.0.with(name, |series| series.count(known, enabled));
    }

    pub(super) fn chosen(&self, name: &Name<'_>, variant: Option<&Variant>) {
        let chosen = variant.and_then(|variant| variant.name.as_deref()).unwrap_or("disabled");
        let enabled = variant.is_some_and(|variant| variant.enabled);
        self.0.with(name, |series| {
            series.count(variant.is_some(), enabled);
            series.variants.with(&Name::new(chosen), Sharded::add_one);
        });
    }

    /// The declared default applied.
    pub(super) fn defaulted(&self, name: &Name<'_>) {
        self.0.with(name, |series| series.defaulted.add_one());
    }
}

impl Series {
    fn count(&self, known: bool, enabled: bool) {
        if enabled {
            self.enabled.add_one();
        } else {
            self.disabled.add_one();
        }
        if !known {
            self.defaulted.add_one();
        }
    }
}

/// Counts of requests to the flag server and of backups, and the time of the last answer.
#[derive(Debug, Default)]
pub(super) struct Fetches {
    pub(super) changed: Sharded,
    pub(super) unchanged: Sharded,
    pub(super) failed: Sharded,
    /// States that another instance fetched.
    pub(super) shared: Sharded,
    pub(super) restored: Sharded,
    pub(super) saved: Sharded,
    pub(super) refused: Sharded,
    pub(super) backup_failed: Sharded,
    /// Milliseconds since 1970; 0 before the first success.
    pub(super) last_success: AtomicU64,
}

/// The metric families of this module.
pub(super) struct Families {
    tally: Arc<Tally>,
    fetches: Option<Arc<Fetches>>,
    version: String,
    descs: Vec<Desc>,
}

const DECISIONS: (&str, &str) = (
    "cutover_flag_decisions_total",
    "Flag decisions by flag and outcome; repeated decisions within a request count once.",
);
const DEFAULTS: (&str, &str) = (
    "cutover_flag_defaults_total",
    "Flag decisions for which the declared default applied, because the source had no usable answer.",
);
const FETCHES: (&str, &str) = (
    "cutover_flag_fetches_total",
    "Requests to the flag server by result (changed, unchanged, failed), and states that another instance fetched (shared).",
);
const BACKUPS: (&str, &str) = (
    "cutover_flag_backups_total",
    "Backups of the last known state by result (saved, restored, failed; refused: damaged or too large).",
);
const LAST_SUCCESS: (&str, &str) = (
    "cutover_flags_last_success_timestamp_seconds",
    "Unix time of the last answer of the flag server to this instance, or to the one that polls for the fleet; 0 if it never answered.",
);

impl Families {
    pub(super) fn new(
        tally: Arc<Tally>,
        fetches: Option<Arc<Fetches>>,
        version: &str,
    ) -> prometheus::Result<Self> {
        let mut families =
            vec![(DECISIONS, vec!["flag", "enabled", "version"]), (DEFAULTS, vec!["flag", "version"])];
        if fetches.is_some() {
            families.extend([(FETCHES, vec!["result"]), (BACKUPS, vec!["result"]), (LAST_SUCCESS, vec![])]);
        }
        let descs = families
            .into_iter()
            .map(|((name, help), labels)| {
                let labels = labels.into_iter().map(str::to_owned).collect();
                Desc::new(name.to_owned(), help.to_owned(), labels, Default::default())
            })
            .collect::<prometheus::Result<_>>()?;
        Ok(Self { tally, fetches, version: version.to_owned(), descs })
    }
}

impl Collector for Families {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let version = &*self.version;
        let mut decisions = Vec::new();
        let mut defaults = Vec::new();
        self.tally.0.for_each(|flag, series| {
            for (enabled, count) in [("true", &series.enabled), ("false", &series.disabled)] {
                decisions.push(counter(&["enabled", "flag", "version"], &[enabled, flag, version], count));
            }
            defaults.push(counter(&["flag", "version"], &[flag, version], &series.defaulted));
        });
        let mut families = vec![
            family(DECISIONS, MetricType::COUNTER, decisions),
            family(DEFAULTS, MetricType::COUNTER, defaults),
        ];
        if let Some(fetches) = &self.fetches {
            let results = [
                ("changed", &fetches.changed),
                ("unchanged", &fetches.unchanged),
                ("failed", &fetches.failed),
                ("shared", &fetches.shared),
            ]
            .map(|(result, count)| counter(&["result"], &[result], count));
            let backups = [
                ("restored", &fetches.restored),
                ("saved", &fetches.saved),
                ("refused", &fetches.refused),
                ("failed", &fetches.backup_failed),
            ]
            .map(|(result, count)| counter(&["result"], &[result], count));
            let last_success = fetches.last_success.load(Ordering::Relaxed) as f64 / 1000.0;
            families.push(family(FETCHES, MetricType::COUNTER, results.into()));
            families.push(family(BACKUPS, MetricType::COUNTER, backups.into()));
            let gauge = vec![scrape::gauge(&[], &[], last_success)];
            families.push(family(LAST_SUCCESS, MetricType::GAUGE, gauge));
        }
        families.retain(|family| !family.get_metric().is_empty());
        families
    }
}

fn family((name, help): (&str, &str), kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    scrape::family_of(name, help, kind, metrics)
}

fn counter(names: &[&str], values: &[&str], count: &Sharded) -> Metric {
    scrape::counter(names, values, count.sum() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_several_threads_add_up() {
        let tally = Arc::new(Tally::default());
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        tally.decided(&Name::new("a"), false, true);
                    }
                });
            }
        });
        let mut sums = Vec::new();
        tally.0.for_each(|_, series| sums.push([series.enabled.sum(), series.defaulted.sum()]));
        assert_eq!(sums, [[20_000, 20_000]]);
    }
}
