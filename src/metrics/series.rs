use std::{
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use super::bounds::{Bounds, MAX_BOUNDS};
use super::trace::TraceId;
use crate::scrape::Buckets;

/// Including the one above every bound.
pub(super) const BUCKETS: usize = MAX_BOUNDS + 1;
/// More shards cost memory per series and gain nothing.
const MAX_SHARDS: usize = 16;

/// One shard per core, so that cores do not share a cache line.
pub(crate) fn shard_count() -> usize {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    cores.next_power_of_two().min(MAX_SHARDS)
}

/// The number of the calling thread.
pub(crate) fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static THREAD: usize = NEXT.fetch_add(1, Relaxed));
    // Thread-locals are gone while a thread is destroyed. Any shard is correct.
    THREAD.try_with(|number| *number).unwrap_or(0)
}

/// An example request of a bucket.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Exemplar {
    pub(super) trace: TraceId,
    pub(super) nanos: u64,
    /// When the request ended.
    pub(super) at: Instant,
}

type Exemplars = [Mutex<Option<Exemplar>>; BUCKETS];

/// One shard of a histogram of durations.
#[derive(Default)]
pub(crate) struct Durations {
    /// Not cumulative. The one after the last bound counts durations above every bound, and those after it are not used.
    buckets: [AtomicU64; BUCKETS],
    nanos: AtomicU64,
    /// Created with the first traced request. Most services have none.
    exemplars: OnceLock<Box<Exemplars>>,
}

impl Durations {
    /// Counts a duration without an example request. `bounds` are the same in every call.
    pub(crate) fn count(&self, bounds: &Bounds, duration: Duration) {
        self.record(bounds, u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX), None);
    }

    /// `bounds` are the same in every call. `example`: the trace of the request, and when it ended.
    #[inline]
    pub(super) fn record(&self, bounds: &Bounds, nanos: u64, example: Option<(TraceId, Instant)>) {
        let bucket = bounds.bucket(nanos);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.nanos.fetch_add(nanos, Relaxed);
        if let Some((trace, at)) = example {
            self.exemplify(bucket, Exemplar { trace, nanos, at });
        }
    }

    fn exemplify(&self, bucket: usize, exemplar: Exemplar) {
        let slot = &self.exemplars.get_or_init(Box::default)[bucket];
        // No wait for the lock: any request of the bucket is a good example.
        if let Ok(mut slot) = slot.try_lock() {
            *slot = Some(exemplar);
        }
    }
}

/// The sums over the shards of a histogram at one time.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Snapshot {
    /// Cumulative, as in Prometheus: the last one counts all.
    pub(super) cumulative: [u64; BUCKETS],
    pub(super) nanos: u64,
    pub(super) exemplars: [Option<Exemplar>; BUCKETS],
}

impl Snapshot {
    pub(crate) fn add(&mut self, shard: &Durations) {
        let mut below = 0;
        for (cumulative, bucket) in self.cumulative.iter_mut().zip(&shard.buckets) {
            below += bucket.load(Relaxed);
            *cumulative += below;
        }
        self.nanos = self.nanos.wrapping_add(shard.nanos.load(Relaxed));
        let slots = shard.exemplars.get().into_iter().flat_map(|slots| slots.iter());
        for (newest, slot) in self.exemplars.iter_mut().zip(slots) {
            let other = *slot.lock().unwrap_or_else(PoisonError::into_inner);
            if other.map(|e| e.at) > newest.map(|e| e.at) {
                *newest = other;
            }
        }
    }

    /// The counter comes from the same buckets, so that the two families always agree.
    pub(super) fn count(&self) -> u64 {
        self.cumulative[BUCKETS - 1]
    }

    pub(super) fn seconds(&self) -> f64 {
        Duration::from_nanos(self.nanos).as_secs_f64()
    }

    /// The buckets for a scrape.
    pub(crate) fn buckets<'a>(&'a self, bounds: &'a Bounds) -> Buckets<'a> {
        let (count, seconds) = (self.count(), self.seconds());
        Buckets { bounds: bounds.seconds(), cumulative: &self.cumulative, count, seconds }
    }
}
