use std::{sync::Arc, time::Instant};

use super::http::{Abort, Route};

/// One request in flight: counted exactly once, at the latest when dropped.
pub(super) struct Ticket {
    route: Arc<Route>,
    method: u8,
    started: Instant,
    /// True while code of the service runs. Still true in `drop` means that it unwound;
    /// `thread::panicking()` would also be true for a bystander that another panic drops.
    running: bool,
    counted: bool,
}

impl Ticket {
    pub(super) fn new(route: Arc<Route>, method: u8) -> Self {
        route.in_flight.add(1);
        Self { route, method, started: Instant::now(), running: false, counted: false }
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

    pub(super) fn method(&self) -> u8 {
        self.method
    }

    pub(super) fn completed(&mut self, status: u16) {
        if !self.counted {
            self.counted = true;
            let duration = self.started.elapsed();
            self.route.with(self.method, status, |series| series.record(duration));
            self.route.in_flight.add(-1);
        }
    }

    pub(super) fn aborted(&mut self, abort: Abort) {
        if !self.counted {
            self.route.abort(self.method, abort);
            self.completed(abort.status());
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.aborted(if self.running { Abort::Panic } else { Abort::Dropped });
    }
}
