//! The atomics that the gate is built on, in a module of their own so that `tests/gate` can replace them with those of a model
//! checker.

use std::sync::atomic::AtomicUsize;

pub(crate) use std::sync::atomic::{AtomicU64, Ordering};

/// A small number that differs between threads that run at the same time.
#[inline]
pub(crate) fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static NUMBER: usize = NEXT.fetch_add(1, Ordering::Relaxed));
    // While a thread ends, its locals are gone. Any shard is correct; this one is only shared by more threads.
    NUMBER.try_with(|number| *number).unwrap_or(0)
}
