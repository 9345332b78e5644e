use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use tokio::time::Instant;

use super::redact::redact;

/// What a failing component does to readiness.
///
/// Whatever it is, a component that was never well blocks readiness: a build that can't
/// reach its database must not go live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Criticality {
    /// Not ready while failing. Only for what is this instance's own trouble (its lease, its
    /// drain): a shared dependency would take the whole fleet out at once.
    Critical,
    /// Once it was well, a failure is reported as a warning and the instance stays ready.
    Degrades,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Status {
    Pass,
    Warn,
    Fail,
}

impl Status {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// What a component last said.
#[derive(Debug, Clone)]
pub(super) struct State {
    pub(super) status: Status,
    /// Without secrets: made by [`State::new`] only.
    pub(super) output: Option<Arc<str>>,
    /// When it was said, for people.
    pub(super) time: SystemTime,
    /// The same, for computing its age.
    pub(super) at: Instant,
    /// How long the probe took.
    pub(super) took: Option<Duration>,
}

impl State {
    pub(super) fn new(status: Status, output: Option<&str>, took: Option<Duration>) -> Self {
        Self {
            status,
            output: output.map(|text| redact(text).into()),
            time: SystemTime::now(),
            at: Instant::now(),
            took,
        }
    }
}

/// One line of the health pages: a latch, a signal or a check.
#[derive(Debug)]
pub(super) struct Component {
    pub(super) name: Arc<str>,
    criticality: Criticality,
    state: ArcSwap<State>,
    reached: AtomicBool,
}

impl Component {
    pub(super) fn new(name: Arc<str>, criticality: Criticality, waiting_for: &str) -> Self {
        Self {
            name,
            criticality,
            state: ArcSwap::from_pointee(State::new(Status::Fail, Some(waiting_for), None)),
            reached: AtomicBool::new(false),
        }
    }

    pub(super) fn set(&self, state: State) {
        let reached = state.status != Status::Fail;
        self.state.store(Arc::new(state));
        if reached {
            self.reached.store(true, Ordering::Release);
        }
    }

    pub(super) fn reached(&self) -> bool {
        self.reached.load(Ordering::Acquire)
    }

    /// What was last said, with the status that the criticality makes of it.
    pub(super) fn shown(&self) -> State {
        let mut state = State::clone(&self.state.load());
        if state.status == Status::Fail && self.criticality == Criticality::Degrades && self.reached() {
            state.status = Status::Warn;
        }
        state
    }

    pub(super) fn blocks(&self) -> bool {
        self.shown().status == Status::Fail
    }
}
