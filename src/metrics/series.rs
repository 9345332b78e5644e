use std::{
    sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering::Relaxed},
    thread,
    time::Duration,
};

/// Upper bounds of the duration buckets, in seconds.
pub(super) const BOUNDS: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
/// The same in nanoseconds: comparing integers keeps floats off the request path.
const BOUNDS_NANOS: [u64; 14] = [
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    75_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    750_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    7_500_000_000,
    10_000_000_000,
];
/// More shards than this cost memory per series and win nothing.
const MAX_SHARDS: usize = 16;

/// A shard per core, so that two cores that count don't fight for one cache line.
pub(super) struct Shards<T>(Box<[T]>);

impl<T: Default> Default for Shards<T> {
    fn default() -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let len = cores.next_power_of_two().min(MAX_SHARDS);
        Self((0..len).map(|_| T::default()).collect())
    }
}

impl<T> Shards<T> {
    /// The calling thread's shard.
    fn own(&self) -> &T {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local!(static THREAD: usize = NEXT.fetch_add(1, Relaxed));
        // While a thread is torn down its thread-locals are gone; any shard will do.
        let thread = THREAD.try_with(|index| *index).unwrap_or(0);
        &self.0[thread & (self.0.len() - 1)]
    }
}

#[derive(Default)]
#[repr(align(128))]
struct HistogramShard {
    /// Not cumulative; the last one counts what is above every bound.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanos: AtomicU64,
}

/// The durations, and by their number the count, of one (route, method, status).
#[derive(Default)]
pub(super) struct Series(Shards<HistogramShard>);

/// What a [`Series`] held at one time. The counter is derived from the same buckets, so
/// the two families can't disagree.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Snapshot {
    /// As Prometheus wants them: each includes those below.
    pub(super) cumulative: [u64; BOUNDS.len()],
    pub(super) count: u64,
    pub(super) seconds: f64,
}

impl Series {
    pub(super) fn record(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_NANOS.iter().position(|bound| nanos <= *bound).unwrap_or(BOUNDS_NANOS.len());
        let shard = self.0.own();
        shard.buckets[bucket].fetch_add(1, Relaxed);
        shard.nanos.fetch_add(nanos, Relaxed);
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (index, cumulative) in snapshot.cumulative.iter_mut().enumerate() {
            snapshot.count += self.bucket(index);
            *cumulative = snapshot.count;
        }
        snapshot.count += self.bucket(BOUNDS.len());
        let nanos: u64 = self.0.0.iter().map(|s| s.nanos.load(Relaxed)).sum();
        snapshot.seconds = Duration::from_nanos(nanos).as_secs_f64();
        snapshot
    }

    fn bucket(&self, index: usize) -> u64 {
        let shards = self.0.0.iter();
        shards.map(|s| s.buckets[index].load(Relaxed)).sum()
    }
}

#[derive(Default)]
#[repr(align(128))]
struct GaugeShard(AtomicI64);

/// Goes up on one core and down on another; only the sum means something.
#[derive(Default)]
pub(super) struct Gauge(Shards<GaugeShard>);

impl Gauge {
    pub(super) fn add(&self, by: i64) {
        self.0.own().0.fetch_add(by, Relaxed);
    }

    pub(super) fn get(&self) -> i64 {
        self.0.0.iter().map(|s| s.0.load(Relaxed)).sum()
    }
}
