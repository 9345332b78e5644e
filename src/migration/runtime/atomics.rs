//! What the gate is built on. A module of its own, so that `tests/gate` can put a model checker's in its place.

use std::sync::atomic::AtomicUsize;

pub(crate) use std::sync::atomic::{AtomicU64, Ordering};

/// A small number that differs between the threads that run at the same time.
#[inline]
pub(crate) fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static NUMBER: usize = NEXT.fetch_add(1, Ordering::Relaxed));
    // While a thread ends its locals are gone; any shard is right, this one is merely shared.
    NUMBER.try_with(|number| *number).unwrap_or(0)
}
