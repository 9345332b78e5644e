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

#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Spare {
    flags: Flags,
    kept: Mutex<Vec<Decisions>>,
}

impl Spares {
    pub(super) fn new(flags: &Flags) -> Self {
        let spare = |_| Arc::new(Spare { flags: flags.clone(), kept: Mutex::default() });
        Self(Arc::new(std::array::from_fn(spare)))
    }

    /// Those of the calling thread.
    pub(super) fn mine(&self) -> &Arc<Spare> {
        &self.0[shard()]
    }
}

impl Spare {
    /// Decisions about this subject.
    pub(super) fn take(&self, subject: Subject) -> Decisions {
        // No wait for the lock, in either function: an allocation is cheaper.
        match self.kept.try_lock().ok().and_then(|mut kept| kept.pop()) {
            Some(decisions) => decisions.about(subject),
            None => Decisions::new(self.flags.clone(), subject),
        }
    }

    /// Keeps decisions that nothing else uses. Their subject and answers are dropped.
    pub(super) fn keep(&self, mut decisions: Decisions) {
        if decisions.clear()
            && let Ok(mut kept) = self.kept.try_lock()
            && kept.len() < KEPT
        {
            kept.push(decisions);
        }
    }
}
