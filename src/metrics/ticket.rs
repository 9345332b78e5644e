use std::sync::Arc;
use std::time::{Duration, Instant};

use super::labels::{Abort, METHODS};
use super::route::Shard;
use super::trace::TraceId;

/// One request in flight. It is counted exactly once, at the latest when it is dropped.
pub(super) struct Ticket {
    shard: Arc<Shard>,
    started: Instant,
    /// The time to the response head in nanoseconds, as long as the body has not been asked for more than it had then.
    head: Option<u64>,
    trace: Option<TraceId>,
    method: u8,
    /// True while code of the service runs. If it is true in `drop`, that code panicked. `thread::panicking()` is also true
    /// for a request that the panic of another one drops.
    running: bool,
    counted: bool,
}

impl Ticket {
    #[inline]
    pub(super) fn new(shard: Arc<Shard>, method: u8, trace: Option<TraceId>) -> Self {
        shard.begin();
        Self { shard, started: Instant::now(), head: None, trace, method, running: false, counted: false }
    }

    /// Code of the service runs from now on until [`Ticket::ran`], so that its panic is recognised. This is not a function
    /// that takes a closure, because a closure copies the request that it captures.
    #[inline]
    pub(super) fn runs(&mut self) {
        self.running = true;
    }

    #[inline]
    pub(super) fn ran(&mut self) {
        self.running = false;
    }

    #[inline]
    pub(super) fn panicked(&self) -> bool {
        self.running
    }

    #[inline]
    pub(super) fn is_head(&self) -> bool {
        METHODS[usize::from(self.method)] == "HEAD"
    }

    /// Records the time to the response head.
    #[inline]
    pub(super) fn first_byte(&mut self) {
        let nanos = self.elapsed();
        self.head = Some(nanos);
        self.shard.first_byte(self.method, nanos);
    }

    /// The body has more than it had with the head, or has to be waited for.
    #[inline]
    pub(super) fn goes_on(&mut self) {
        self.head = None;
    }

    /// Counts the request. A response that is complete when its body is first asked for ends with its head, so that the clock
    /// is not read a third time.
    #[inline]
    pub(super) fn completed(&mut self, status: u16) {
        if !self.counted {
            let nanos = self.head.unwrap_or_else(|| self.elapsed());
            self.count(status, nanos);
        }
    }

    pub(super) fn aborted(&mut self, abort: Abort) {
        if !self.counted {
            self.shard.method(self.method).aborted(abort);
            self.count(abort.status(), self.elapsed());
        }
    }

    /// In nanoseconds.
    #[inline]
    fn elapsed(&self) -> u64 {
        let elapsed = self.started.elapsed();
        // Not `as_nanos`, which has 128 bits.
        elapsed.as_secs() * 1_000_000_000 + u64::from(elapsed.subsec_nanos())
    }

    #[inline]
    fn count(&mut self, status: u16, nanos: u64) {
        self.counted = true;
        let example = self.trace.map(|trace| (trace, self.started + Duration::from_nanos(nanos)));
        self.shard.completed(self.method, status, nanos, example);
    }
}

impl Drop for Ticket {
    #[inline]
    fn drop(&mut self) {
        if !self.counted {
            self.aborted(if self.running { Abort::Panic } else { Abort::Dropped });
        }
    }
}
