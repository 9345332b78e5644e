use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use super::bounds::Bounds;
use super::labels::{Abort, METHODS};
use super::series::{Durations, Snapshot, shard_count, thread_number};
use super::trace::TraceId;

/// All series of one route, in shards.
pub(super) struct Route {
    pub(super) name: Box<str>,
    /// Each has its own reference count. A request in flight holds its shard, and with one count every core would write to
    /// it.
    shards: Box<[Arc<Shard>]>,
}

impl Route {
    pub(super) fn new(name: &str, bounds: &Arc<Bounds>) -> Self {
        let shard = || {
            Arc::new(Shard {
                begun: AtomicU64::new(0),
                bounds: Arc::clone(bounds),
                methods: Default::default(),
            })
        };
        Self { name: name.into(), shards: (0..shard_count()).map(|_| shard()).collect() }
    }

    /// The calling thread's shard.
    pub(super) fn shard(&self) -> &Arc<Shard> {
        // The count is a power of two.
        &self.shards[thread_number() & (self.shards.len() - 1)]
    }

    /// Creates the series of this method before its first request.
    pub(super) fn declare(&self, method: u8) {
        self.shard().method(method);
    }

    /// Requests that have begun. Read after the number of ended requests, it is never smaller.
    pub(super) fn begun(&self) -> u64 {
        self.shards.iter().map(|shard| shard.begun.load(Acquire)).sum()
    }

    /// The methods that were declared or have had a request, each with its index.
    pub(super) fn methods(&self) -> impl Iterator<Item = (usize, MethodSnapshot)> {
        (0..METHODS.len()).filter_map(|index| {
            let mut there = self.shards.iter().filter_map(|shard| shard.methods[index].get()).peekable();
            there.peek()?;
            let mut snapshot = MethodSnapshot::default();
            there.for_each(|method| snapshot.add(method));
            Some((index, snapshot))
        })
    }
}

/// The counts of one core for a route. Only the sum over the shards is meaningful: a request that ends on another core is
/// counted in the shard in which it began.
#[repr(align(128))]
pub(super) struct Shard {
    /// The number in flight is the difference between begun and ended requests, so that the gauge can't drift.
    begun: AtomicU64,
    bounds: Arc<Bounds>,
    methods: [OnceLock<Box<Method>>; METHODS.len()],
}

impl Shard {
    #[inline]
    pub(super) fn begin(&self) {
        self.begun.fetch_add(1, Relaxed);
    }

    /// Records the time to the head of a response, in nanoseconds.
    #[inline]
    pub(super) fn first_byte(&self, method: u8, nanos: u64) {
        self.method(method).first_byte.record(&self.bounds, nanos, None);
    }

    /// Records the end of a response, after so many nanoseconds. `example`: the request's trace, and when it ended.
    #[inline]
    pub(super) fn completed(&self, method: u8, status: u16, nanos: u64, example: Option<(TraceId, Instant)>) {
        self.method(method).statuses.of(status).record(&self.bounds, nanos, example);
    }

    #[inline]
    pub(super) fn method(&self, method: u8) -> &Method {
        self.methods[usize::from(method)].get_or_init(Box::default)
    }
}

/// The counts of one method of a route.
#[repr(align(128))]
pub(super) struct Method {
    first_byte: Durations,
    aborts: [AtomicU64; Abort::ALL.len()],
    statuses: Statuses,
}

/// `rate()` misses the first increase of a series that does not exist before it, so it would miss the first failure of
/// a quiet canary. 503 is the answer of a service that is overloaded or drains.
const FROM_THE_START: [u16; 3] = [200, 500, 503];

impl Default for Method {
    fn default() -> Self {
        let statuses = Statuses::default();
        for status in FROM_THE_START {
            statuses.of(status);
        }
        Self { first_byte: Durations::default(), aborts: Default::default(), statuses }
    }
}

impl Method {
    pub(super) fn aborted(&self, abort: Abort) {
        self.aborts[abort as usize].fetch_add(1, Relaxed);
    }
}

/// The durations by status, in the order of first use. A service uses few. Nothing is ever removed, so that reading needs no
/// lock.
#[derive(Default)]
struct Statuses {
    slots: [OnceLock<(u16, Durations)>; 4],
    next: OnceLock<Box<Statuses>>,
}

impl Statuses {
    fn of(&self, status: u16) -> &Durations {
        let mut segment = self;
        loop {
            for slot in &segment.slots {
                let (other, durations) = slot.get_or_init(|| (status, Durations::default()));
                if *other == status {
                    return durations;
                }
            }
            segment = segment.next.get_or_init(Box::default);
        }
    }

    fn for_each(&self, mut with: impl FnMut(u16, &Durations)) {
        let mut segment = Some(self);
        while let Some(Self { slots, next }) = segment {
            for (status, durations) in slots.iter().filter_map(OnceLock::get) {
                with(*status, durations);
            }
            segment = next.get().map(Box::as_ref);
        }
    }
}

/// The sums over the shards of a method at one time.
#[derive(Default)]
pub(super) struct MethodSnapshot {
    pub(super) first_byte: Snapshot,
    pub(super) aborts: [u64; Abort::ALL.len()],
    pub(super) statuses: BTreeMap<u16, Snapshot>,
}

impl MethodSnapshot {
    fn add(&mut self, shard: &Method) {
        self.first_byte.add(&shard.first_byte);
        for (sum, count) in self.aborts.iter_mut().zip(&shard.aborts) {
            *sum += count.load(Relaxed);
        }
        shard.statuses.for_each(|status, durations| self.statuses.entry(status).or_default().add(durations));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_of_all_threads_are_in_their_buckets() {
        let route = Route::new("/", &Arc::default());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for millis in [5, 6, 9_999, 10_000, 60_000] {
                        route.shard().completed(0, 200, millis * 1_000_000, None);
                    }
                });
            }
        });
        let (_, snapshot) = route.methods().next().unwrap();
        let snapshot = &snapshot.statuses[&200];
        assert_eq!(snapshot.cumulative[..2], [8, 16], "a bound belongs to its bucket");
        assert_eq!(snapshot.cumulative[12..15], [16, 32, 40]);
        assert_eq!(snapshot.count(), 40);
        assert!((snapshot.seconds() - 8.0 * 80.01).abs() < 1e-6);
    }

    #[test]
    fn concurrent_new_statuses_are_each_counted() {
        let route = Route::new("/", &Arc::default());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for status in 100..1000 {
                        route.shard().completed(1, status, 0, None);
                    }
                });
            }
        });
        let (method, snapshot) = route.methods().next().unwrap();
        assert_eq!(method, 1);
        assert_eq!(snapshot.statuses.len(), 900);
        assert!(snapshot.statuses.values().all(|s| s.count() == 4));
    }
}
