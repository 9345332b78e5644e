//! Atomics that the gate can be built on.

use std::cell::Cell;

/// `loom`'s atomics.
pub(crate) mod faithful {
    pub(crate) use super::thread_number;
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
}

/// Atomics that ignore the ordering.
pub(crate) mod relaxed {
    pub(crate) use super::thread_number;
    pub(crate) use loom::sync::atomic::Ordering;

    pub(crate) struct AtomicU64(loom::sync::atomic::AtomicU64);

    impl AtomicU64 {
        pub(crate) fn new(value: u64) -> Self {
            Self(loom::sync::atomic::AtomicU64::new(value))
        }

        pub(crate) fn load(&self, _: Ordering) -> u64 {
            self.0.load(Ordering::Relaxed)
        }

        pub(crate) fn store(&self, value: u64, _: Ordering) {
            self.0.store(value, Ordering::Relaxed);
        }

        pub(crate) fn fetch_add(&self, value: u64, _: Ordering) -> u64 {
            self.0.fetch_add(value, Ordering::Relaxed)
        }

        pub(crate) fn fetch_sub(&self, value: u64, _: Ordering) -> u64 {
            self.0.fetch_sub(value, Ordering::Relaxed)
        }
    }
}

/// The first load after an increment repeats the value of the load before it, as if the gate did not load again.
pub(crate) mod forgetful {
    pub(crate) use super::thread_number;
    use super::{COUNTED_UP, LAST_LOADED};
    pub(crate) use loom::sync::atomic::Ordering;

    pub(crate) struct AtomicU64(loom::sync::atomic::AtomicU64);

    impl AtomicU64 {
        pub(crate) fn new(value: u64) -> Self {
            Self(loom::sync::atomic::AtomicU64::new(value))
        }

        pub(crate) fn load(&self, ordering: Ordering) -> u64 {
            if COUNTED_UP.with(|counted| counted.replace(false)) {
                return LAST_LOADED.with(|last| last.get());
            }
            let value = self.0.load(ordering);
            LAST_LOADED.with(|last| last.set(value));
            value
        }

        pub(crate) fn store(&self, value: u64, ordering: Ordering) {
            self.0.store(value, ordering);
        }

        pub(crate) fn fetch_add(&self, value: u64, ordering: Ordering) -> u64 {
            COUNTED_UP.with(|counted| counted.set(value > 0));
            self.0.fetch_add(value, ordering)
        }

        pub(crate) fn fetch_sub(&self, value: u64, ordering: Ordering) -> u64 {
            self.0.fetch_sub(value, ordering)
        }
    }
}

loom::thread_local! {
    static NUMBER: usize = next();
    static COUNTED_UP: Cell<bool> = Cell::new(false);
    static LAST_LOADED: Cell<u64> = Cell::new(0);
}

loom::lazy_static! {
    static ref NEXT: loom::sync::atomic::AtomicUsize = loom::sync::atomic::AtomicUsize::new(0);
}

fn next() -> usize {
    NEXT.fetch_add(1, loom::sync::atomic::Ordering::Relaxed)
}

/// Differs between the threads of one run.
pub(crate) fn thread_number() -> usize {
    NUMBER.with(|number| *number)
}
