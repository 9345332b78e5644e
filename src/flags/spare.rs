//! Decisions of past requests, to be used again without an allocation.

use std::sync::{Arc, Mutex};

use super::counters::{SHARDS, shard};
use super::decisions::Decisions;
use super::handle::Flags;
use super::subject::Subject;

/// How many are kept per shard. More requests at a time allocate.
const KEPT: usize = 64;

/// The spare decisions of one layer.
///
/// Each shard has its own reference count, and a request holds that of its thread, so that cores do not write to one cache
/// line.
#[derive(Clone, Debug)]
pub(super) struct Spares(Arc<[Arc<Spare>; SHARDS]>);

#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Spare(Mutex<Vec<Decisions>>);

impl Default for Spares {
    fn default() -> Self {
        Self(Arc::new(std::array::from_fn(|_| Arc::default())))
    }
}

impl Spares {
    /// Those of the calling thread.
    pub(super) fn mine(&self) -> &Arc<Spare> {
        &self.0[shard()]
    }
}

impl Spare {
    /// Decisions about this subject.
    pub(super) fn take(&self, flags: &Flags, subject: Subject) -> Decisions {
        // No wait for the lock, in either function: an allocation is cheaper.
        match self.0.try_lock().ok().and_then(|mut spare| spare.pop()) {
            Some(decisions) => decisions.about(subject),
            None => Decisions::new(flags.clone(), subject),
        }
    }

    /// Keeps decisions that nothing else uses. Their subject and answers are dropped.
    pub(super) fn keep(&self, mut decisions: Decisions) {
        if decisions.clear()
            && let Ok(mut spare) = self.0.try_lock()
            && spare.len() < KEPT
        {
            spare.push(decisions);
        }
    }
}
