use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use tokio::time::Instant;

use super::one_line::one_line;

/// What a failing component does to readiness.
///
/// With either value, a component that has never passed blocks readiness: a build that cannot reach its database must
/// not go live.
// Exhaustive: a component either blocks readiness or it does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Criticality {
    /// The instance is not ready while the component fails. Use it for what belongs to this instance alone (its
    /// lease, its drain). A shared dependency would make the whole fleet unready at once.
    Critical,
    /// After the first pass, a failure is reported as a warning and the instance stays ready.
    Degrades,
}

/// The status of a component, after its [`Criticality`] was applied.
// Exhaustive: these are the three values of the health document (draft-inadarei-api-health-check).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// The component works.
    Pass,
    /// The component is impaired; readiness is not affected.
    Warn,
    /// The component blocks readiness.
    Fail,
}

/// A change of a component's status, from [`Health::status_changes`](super::Health::status_changes).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StatusChange {
    /// The name of the check, signal or latch.
    pub name: Arc<str>,
    /// The status before; `None` for a new component.
    pub from: Option<Status>,
    /// The status now; `None` for a component that was removed (a latch that was dropped).
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

/// The last report of a component.
#[derive(Debug, Clone)]
pub(super) struct State {
    pub(super) status: Status,
    /// Contains no secrets, because [`State::new`] redacts it.
    pub(super) output: Option<Arc<str>>,
    /// The time of the report, for display.
    pub(super) time: SystemTime,
    /// The time of the report by the monotonic clock, for its age.
    pub(super) at: Instant,
    /// The duration of the probe.
    pub(super) took: Option<Duration>,
}

impl State {
    pub(super) fn new(status: Status, output: Option<&str>, took: Option<Duration>) -> Self {
        Self {
            status,
            output: output.map(|text| one_line(text).into()),
            time: SystemTime::now(),
            at: Instant::now(),
            took,
        }
    }
}

/// A latch, a signal or a check: one line of the health pages.
#[derive(Debug)]
pub(super) struct Component {
    pub(super) name: Arc<str>,
    pub(super) group: Option<Arc<str>>,
    is_critical: AtomicBool,
    state: ArcSwap<State>,
    reached: AtomicBool,
}

impl Component {
    pub(super) fn new(name: Arc<str>, criticality: Criticality, waiting_for: &str) -> Self {
        Self {
            name,
            group: None,
            is_critical: AtomicBool::new(criticality == Criticality::Critical),
            state: ArcSwap::from_pointee(State::new(Status::Fail, Some(waiting_for), None)),
            reached: AtomicBool::new(false),
        }
    }

    /// Whether `name` is the name of this component or of its group.
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

    pub(super) fn set_criticality(&self, criticality: Criticality) {
        self.is_critical.store(criticality == Criticality::Critical, Ordering::Release);
    }

    /// Whether the component has passed at least once.
    pub(super) fn reached(&self) -> bool {
        self.reached.load(Ordering::Acquire)
    }

    /// The last report, with the status that follows from the criticality.
    pub(super) fn shown(&self) -> State {
        let mut state = State::clone(&self.state.load());
        let is_critical = self.is_critical.load(Ordering::Acquire);
        if state.status == Status::Fail && !is_critical && self.reached() {
            state.status = Status::Warn;
        }
        state
    }

    pub(super) fn blocks(&self) -> bool {
        self.shown().status == Status::Fail
    }
}
