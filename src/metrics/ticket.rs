use std::sync::Arc;
use std::time::Instant;

use super::labels::{Abort, METHODS};
use super::route::Shard;
use super::trace::TraceId;

/// One request in flight. It is counted exactly once, at the latest when it is dropped.
pub(super) struct Ticket {
    shard: Arc<Shard>,
    started: Instant,
    trace: Option<TraceId>,
    method: u8,
    /// True while code of the service runs. If it is true in `drop`, that code panicked. `thread::panicking()` is also true
    /// for a request that the panic of another one drops.
    running: bool,
    counted: bool,
}

impl Ticket {
    pub(super) fn new(shard: Arc<Shard>, method: u8, trace: Option<TraceId>) -> Self {
        shard.begin();
        Self { shard, started: Instant::now(), trace, method, running: false, counted: false }
    }

    /// Runs code of the service, so that its panic is recognised.
    pub(super) fn run<T>(&mut self, code: impl FnOnce() -> T) -> T {
        self.running = true;
        let value = code();
        self.running = false;
        value
    }

    pub(super) fn panicked(&self) -> bool {
        self.running
    }

    pub(super) fn is_head(&self) -> bool {
        METHODS[usize::from(self.method)] == "HEAD"
    }

    /// Records the time to the response head.
    pub(super) fn first_byte(&self) {
        self.shard.first_byte(self.method, self.started.elapsed());
    }

    pub(super) fn completed(&mut self, status: u16) {
        if !self.counted {
            self.counted = true;
            self.shard.completed(self.method, status, self.started.elapsed(), self.trace);
        }
    }

    pub(super) fn aborted(&mut self, abort: Abort) {
        if !self.counted {
            self.shard.method(self.method).aborted(abort);
            self.completed(abort.status());
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.aborted(if self.running { Abort::Panic } else { Abort::Dropped });
    }
}
