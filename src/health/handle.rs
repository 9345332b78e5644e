use std::fmt;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::check::Check;
use super::component::{Component, Criticality, State, Status, StatusChange};
use super::runner;
use super::shared::Shared;
use crate::config::{ConfigError, Problem};

/// The readiness of this instance, and the handle to everything that determines it.
///
/// Clones share one state. The background tasks end with the last clone (a [`router`](Health::router) holds one) or
/// with [`Health::close`].
///
/// ```
/// use cutover::health::{Criticality, Health};
///
/// let health = Health::new();
/// let warm_up = health.latch("cache warm-up");
/// let license = health.signal("license", Criticality::Critical);
/// assert!(!health.is_ready());
///
/// drop(warm_up);
/// license.ok();
/// assert!(health.is_ready());
///
/// license.fail("the license expired");
/// assert!(!health.is_ready());
/// ```
#[derive(Clone)]
pub struct Health {
    pub(super) shared: Arc<Shared>,
    tasks: CancellationToken,
    _end_with_last_clone: Arc<DropGuard>,
}

impl Health {
    /// A health without components; it is ready. Add latches, signals and checks before the service starts to listen.
    pub fn new() -> Self {
        let tasks = CancellationToken::new();
        Self {
            shared: Arc::new(Shared::new()),
            _end_with_last_clone: Arc::new(tasks.clone().drop_guard()),
            tasks,
        }
    }

    /// A startup step. The instance is not ready until the [`Latch`] is dropped.
    pub fn latch(&self, name: impl Into<Arc<str>>) -> Latch {
        let component = Component::new(name.into(), Criticality::Critical, "not done yet");
        Latch { component: self.shared.add(component), shared: Arc::clone(&self.shared) }
    }

    /// A state that code reports. It blocks readiness until its first pass, and afterwards as `criticality` says.
    pub fn signal(&self, name: impl Into<Arc<str>>, criticality: Criticality) -> Signal {
        let component = Component::new(name.into(), criticality, "not reported yet");
        Signal { component: self.shared.add(component), shared: Arc::clone(&self.shared) }
    }

    /// Probes a dependency in the background, at once and then at the check's interval. The check blocks readiness
    /// until its first pass, and afterwards as its criticality says.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with every unusable setting, or if there is no Tokio runtime.
    pub fn check(&self, check: Check) -> Result<(), ConfigError> {
        check.validate()?;
        let Ok(runtime) = Handle::try_current() else {
            let problem = "no Tokio runtime on this thread; call `Health::check` inside one, because the probe runs on it";
            return ConfigError::check(vec![Problem::new(format!("check {:?}", check.name), problem)]);
        };
        let mut component = Component::new(check.name.clone(), check.criticality, "not probed yet");
        component.group = check.group.clone();
        let component = self.shared.add(component);
        let probing = runner::run(check, component, Arc::clone(&self.shared));
        let ended = self.tasks.clone().cancelled_owned();
        runtime.spawn(async move {
            tokio::select! {
                () = probing => {}
                () = ended => {}
            }
        });
        Ok(())
    }

    /// Whether this instance should receive requests. Costs one atomic load.
    pub fn is_ready(&self) -> bool {
        self.shared.is_ready()
    }

    /// Whether a component or group does not block readiness; `None` if there is none of that name.
    pub fn is_passing(&self, name: &str) -> Option<bool> {
        let components = self.shared.components();
        let called = components.iter().filter(|component| component.is_called(name));
        called.map(|component| !component.blocks()).reduce(|all, one| all && one)
    }

    /// The current readiness and each change of it. A slow receiver sees the latest value.
    pub fn changes(&self) -> watch::Receiver<bool> {
        self.shared.changes()
    }

    /// Each change of a component's status, in order. Readiness is up to date when a change is sent. A subscriber that
    /// is more than 64 changes behind misses the oldest and gets `RecvError::Lagged`.
    pub fn status_changes(&self) -> broadcast::Receiver<StatusChange> {
        self.shared.status_changes()
    }

    /// Ends the background probes of all clones. Components keep their last state.
    pub fn close(&self) {
        self.tasks.cancel();
    }
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health")
            .field("ready", &self.is_ready())
            .field("components", &self.shared.components())
            .finish()
    }
}

/// A startup step that is not done. Dropping it marks the step as done.
///
/// Hold it in the task that does the step. If that task fails, it drops the latch too, so return the error and do not
/// serve.
#[must_use = "dropping the latch marks the step as done"]
pub struct Latch {
    component: Arc<Component>,
    shared: Arc<Shared>,
}

impl Drop for Latch {
    fn drop(&mut self) {
        self.shared.remove(&self.component);
    }
}

impl fmt::Debug for Latch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Latch").field(&self.component.name).finish()
    }
}

/// The reporting end of a state that code reports. Clones report to the same state.
///
/// The last report stays when all clones are dropped.
#[derive(Clone)]
pub struct Signal {
    component: Arc<Component>,
    shared: Arc<Shared>,
}

impl Signal {
    /// Reports a pass.
    pub fn ok(&self) {
        self.report(Status::Pass, None);
    }

    /// Reports an impairment that never affects readiness.
    pub fn warn(&self, reason: impl AsRef<str>) {
        self.report(Status::Warn, Some(reason.as_ref()));
    }

    /// Reports a failure; the signal's [`Criticality`] decides about readiness. The health pages show the reason
    /// without the userinfo of URLs and without the values of names such as `password` and `token`.
    pub fn fail(&self, reason: impl AsRef<str>) {
        self.report(Status::Fail, Some(reason.as_ref()));
    }

    /// Changes what a failure does to readiness, from now on and for the last report.
    pub fn set_criticality(&self, criticality: Criticality) {
        self.shared.set_criticality(&self.component, criticality);
    }

    fn report(&self, status: Status, output: Option<&str>) {
        self.shared.set(&self.component, State::new(status, output, None));
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Signal").field(&self.component).finish()
    }
}
