use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::migration::catalog::PlanProblem;
use crate::migration::phase::Phase;

/// How long the driver uses one result of reading the catalog. While it waits, it asks up to twenty times a second.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The latest result of reading the catalog before a step.
#[derive(Debug, Default)]
pub(super) struct RecentLook(Mutex<Option<Look>>);

#[derive(Debug)]
struct Look {
    at: Instant,
    migration: i32,
    phase: Phase,
    found: Vec<PlanProblem>,
}

impl RecentLook {
    /// What the latest look has found, if it is recent enough. A move always needs a new look.
    pub(super) fn found(&self, migration: i32, phase: Phase, is_move: bool) -> Option<Vec<PlanProblem>> {
        let look = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_recent = |look: &&Look| {
            (look.migration, look.phase) == (migration, phase) && look.at.elapsed() < LOOK_EVERY && !is_move
        };
        look.as_ref().filter(is_recent).map(|look| look.found.clone())
    }

    pub(super) fn record(&self, migration: i32, phase: Phase, found: &[PlanProblem]) {
        let look = Look { at: Instant::now(), migration, phase, found: found.to_vec() };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(look);
    }

    /// The next step needs a new look.
    pub(super) fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
