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

/// How a component is, with what its [`Criticality`] makes of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// All is well.
    Pass,
    /// Not as it should be, but not in the way of readiness.
    Warn,
    /// In the way of readiness.
    Fail,
}

/// A component whose status changed; from
/// [`Health::status_changes`](super::Health::status_changes).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StatusChange {
    /// The check's, signal's or latch's name.
    pub name: Arc<str>,
    /// How it was; `None` for one that is new.
    pub from: Option<Status>,
    /// How it is; `None` for one that is gone (a latch that was dropped).
    pub to: Option<Status>,
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
    pub(super) group: Option<Arc<str>>,
    criticality: Criticality,
    state: ArcSwap<State>,
    reached: AtomicBool,
}

impl Component {
    pub(super) fn new(name: Arc<str>, criticality: Criticality, waiting_for: &str) -> Self {
        Self {
            name,
            group: None,
            criticality,
            state: ArcSwap::from_pointee(State::new(Status::Fail, Some(waiting_for), None)),
            reached: AtomicBool::new(false),
        }
    }

    /// Whether this is meant by `name`: its own, or its group's.
    pub(super) fn is_called(&self, name: &str) -> bool {
        *self.name == *name || self.group.as_deref() == Some(name)
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
