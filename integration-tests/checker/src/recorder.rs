use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Instant,
};

use crate::{
    History,
    history::{Canonical, Op, Values, canonical},
};

/// Collects operations from many workers at once.
///
/// Each worker appends to a log of its own (`worker` modulo the number of logs), so that workers do not wait for each
/// other. Times are nanoseconds on one monotonic clock, [`Recorder::now`].
pub struct Recorder {
    began: Instant,
    canonical: Canonical,
    values: RwLock<Values>,
    logs: Box<[Mutex<Vec<Op>>]>,
}

impl Recorder {
    /// A recorder with `logs` logs (at least one).
    ///
    /// `map` turns a value as it was sent or answered into the value that is compared; it runs once
    /// per operation and must be the caller's own, not the code under test.
    pub fn new(logs: usize, map: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        Self {
            began: Instant::now(),
            canonical: Arc::new(map),
            values: RwLock::default(),
            logs: (0..logs.max(1)).map(|_| Mutex::default()).collect(),
        }
    }

    /// Nanoseconds since the recorder was created.
    pub fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Records a write that was sent at `start`.
    ///
    /// `end` is when its success was acknowledged. `None` says that the outcome is unknown (an error, a
    /// time-out): it may take effect at any time after `start`, or never. A write that certainly never
    /// happened is not recorded at all.
    pub fn write(&self, worker: usize, key: u64, value: &str, start: u64, end: Option<u64>) {
        let value = self.value(value);
        self.push(worker, Op::write(key, value, start, end));
    }

    /// Records a read that was sent at `start` and answered with `value` at `end`.
    pub fn read(&self, worker: usize, key: u64, value: &str, start: u64, end: u64) {
        let value = self.value(value);
        self.push(worker, Op::read(key, value, start, end));
    }

    /// Operations recorded so far.
    pub fn operations(&self) -> usize {
        self.logs.iter().map(|log| lock(log).len()).sum()
    }

    /// Removes everything recorded so far from the logs.
    pub fn history(&self) -> History {
        let ops = self.logs.iter().flat_map(|log| std::mem::take(&mut *lock(log))).collect();
        let values = self.values.read().unwrap_or_else(PoisonError::into_inner).clone();
        History::from_parts(ops, values, Arc::clone(&self.canonical))
    }

    fn value(&self, raw: &str) -> u32 {
        let canonical = canonical(&self.canonical, raw);
        let known = self.values.read().unwrap_or_else(PoisonError::into_inner).get(&canonical);
        known.unwrap_or_else(|| {
            let mut values = self.values.write().unwrap_or_else(PoisonError::into_inner);
            values.intern(&canonical)
        })
    }

    fn push(&self, worker: usize, op: Op) {
        lock(&self.logs[worker % self.logs.len()]).push(op);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
