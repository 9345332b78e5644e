use std::sync::Arc;
use std::time::Instant;

use super::labels::{Abort, METHODS};
use super::route::Shard;
use super::trace::TraceId;

/// One request in flight: counted exactly once, at the latest when dropped.
pub(super) struct Ticket {
    shard: Arc<Shard>,
    started: Instant,
    trace: Option<TraceId>,
    method: u8,
    /// True while code of the service runs. Still true in `drop` means that it unwound;
    /// `thread::panicking()` would also be true for a bystander that another panic drops.
    running: bool,
    counted: bool,
}

impl Ticket {
    pub(super) fn new(shard: Arc<Shard>, method: u8, trace: Option<TraceId>) -> Self {
        shard.begin();
        Self { shard, started: Instant::now(), trace, method, running: false, counted: false }
    }

    /// Runs the service's own code, so that a panic in it is recognised.
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

    /// The response's head is there.
    pub(super) fn first_byte(&self) {
        self.shard.method(self.method).first_byte(self.started.elapsed());
    }

    pub(super) fn completed(&mut self, status: u16) {
        if !self.counted {
            self.counted = true;
            self.shard.method(self.method).completed(status, self.started.elapsed(), self.trace);
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
