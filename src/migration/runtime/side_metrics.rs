//! How long the calls of each side's repository take, and how many fail.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::metrics::{Bounds, Durations, Snapshot, shard_count, thread_number};
use crate::migration::phase::Phase;
use crate::scrape::Samples;

/// Upper bounds of the buckets, in microseconds. A read by key takes less than a millisecond.
const BOUNDS: [u64; 14] = [
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000,
];

/// A call of a repository by `DualWrite`.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub enum SideCall {
    ReadOld,
    ReadNew,
    WriteOld,
    WriteNew,
    /// By the combined writer.
    WriteBoth,
}

impl SideCall {
    /// Each call with its operation and its side.
    const ALL: [(Self, &str, &str); 5] = [
        (Self::ReadOld, "read", "old"),
        (Self::ReadNew, "read", "new"),
        (Self::WriteOld, "write", "old"),
        (Self::WriteNew, "write", "new"),
        (Self::WriteBoth, "write", "both"),
    ];
}

/// The counts of one core for one kind of call.
#[derive(Default)]
struct Calls {
    durations: Durations,
    errors: AtomicU64,
    dropped: AtomicU64,
}

#[derive(Default)]
#[repr(align(128))]
struct Shard([Calls; SideCall::ALL.len()]);

/// Counts in shards, so that cores do not share a cache line. They take no memory before the first measured call.
pub(crate) struct SideMetrics {
    bounds: Bounds,
    shards: OnceLock<Box<[Shard]>>,
}

impl SideMetrics {
    pub(super) fn new() -> Self {
        Self { bounds: Bounds::of_micros(BOUNDS), shards: OnceLock::new() }
    }

    fn calls(&self, call: SideCall) -> &Calls {
        let shards = self.shards.get_or_init(|| (0..shard_count()).map(|_| Shard::default()).collect());
        // The count is a power of two.
        &shards[thread_number() & (shards.len() - 1)].0[call as usize]
    }

    fn of(&self, call: SideCall) -> impl Iterator<Item = &Calls> {
        self.shards.get().into_iter().flatten().map(move |shard| &shard.0[call as usize])
    }

    /// The samples of `cutover_side_duration_seconds`, with the labels `operation` and `side`.
    pub(super) fn durations(&self, samples: &mut Samples<'_>) {
        for (call, operation, side) in SideCall::ALL {
            let mut sum = Snapshot::default();
            self.of(call).for_each(|calls| sum.add(&calls.durations));
            samples.histogram(&[operation, side], &sum.buckets(&self.bounds));
        }
    }

    /// The samples of `cutover_side_failures_total`, with the labels `operation`, `reason` and `side`.
    pub(super) fn failures(&self, samples: &mut Samples<'_>) {
        for (call, operation, side) in SideCall::ALL {
            let sum = |count: fn(&Calls) -> &AtomicU64| -> u64 {
                self.of(call).map(|calls| count(calls).load(Ordering::Relaxed)).sum()
            };
            samples.value(&[operation, "error", side], sum(|calls| &calls.errors) as f64);
            samples.value(&[operation, "dropped", side], sum(|calls| &calls.dropped) as f64);
        }
    }
}

/// Measures one call. A call that is dropped before its end counts as such.
#[doc(hidden)]
#[must_use = "it measures until `ended`"]
pub struct CallTimer<'a>(Option<Running<'a>>);

struct Running<'a> {
    side: &'a SideMetrics,
    call: SideCall,
    since: Instant,
}

impl<'a> CallTimer<'a> {
    /// Begins to measure, from `expand` to `retire`. Before and after that there is one side, and nothing to compare.
    #[inline]
    pub(crate) fn start(side: &'a SideMetrics, phase: Option<Phase>, call: SideCall) -> Self {
        let is_measured = phase.is_some_and(|phase| (Phase::Expand..=Phase::Retire).contains(&phase));
        if is_measured { Self::running(side, call) } else { Self(None) }
    }

    #[cold]
    fn running(side: &'a SideMetrics, call: SideCall) -> Self {
        Self(Some(Running { side, call, since: Instant::now() }))
    }

    /// Records the call and returns its result.
    #[inline]
    pub fn ended<T, E>(mut self, result: Result<T, E>) -> Result<T, E> {
        if let Some(running) = self.0.take() {
            running.record(result.is_err().then_some(|calls| &calls.errors));
        }
        result
    }
}

impl Running<'_> {
    #[inline(never)]
    fn record(&self, failure: Option<fn(&Calls) -> &AtomicU64>) {
        let calls = self.side.calls(self.call);
        calls.durations.count(&self.side.bounds, self.since.elapsed());
        if let Some(failure) = failure {
            failure(calls).fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for CallTimer<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(running) = self.0.take() {
            running.record(Some(|calls| &calls.dropped));
        }
    }
}

impl std::fmt::Debug for CallTimer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("CallTimer").field(&self.0.as_ref().map(|running| running.call)).finish()
    }
}
