use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use axum::Router;
use tokio::runtime::Handle;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::component::{Component, State};
use super::{Check, Criticality, HealthError, Status, StatusChange, pages, runner};

/// Changes that a slow listener may be behind; after that it misses some, and is told.
const LISTENERS_LAG: usize = 64;

/// The one state behind readiness, and the handle to everything that feeds it.
///
/// Clones are the same `Health`. Its background tasks end with the last clone (a
/// [`router`](Health::router) holds one) or with [`Health::close`].
///
/// ```
/// use cutover::health::{Criticality, Health};
///
/// let health = Health::new();
/// let warm_up = health.latch("cache warm-up");
/// let lease = health.signal("lease", Criticality::Critical);
/// assert!(!health.is_ready());
///
/// drop(warm_up);
/// lease.ok();
/// assert!(health.is_ready());
///
/// lease.fail("the lease ran out");
/// assert!(!health.is_ready());
/// ```
#[derive(Clone)]
pub struct Health {
    pub(super) shared: Arc<Shared>,
    tasks: CancellationToken,
    _end_with_last_clone: Arc<DropGuard>,
}

pub(super) struct Shared {
    ready: AtomicBool,
    changes: watch::Sender<bool>,
    statuses: broadcast::Sender<StatusChange>,
    components: ArcSwap<Vec<Arc<Component>>>,
}

impl Health {
    /// Nothing to wait for yet, so it is ready. Add latches, signals and checks before the
    /// service starts to listen.
    pub fn new() -> Self {
        let tasks = CancellationToken::new();
        Self {
            shared: Arc::new(Shared {
                ready: AtomicBool::new(true),
                changes: watch::Sender::new(true),
                statuses: broadcast::Sender::new(LISTENERS_LAG),
                components: ArcSwap::default(),
            }),
            _end_with_last_clone: Arc::new(tasks.clone().drop_guard()),
            tasks,
        }
    }

    /// A startup step: not ready until the [`Latch`] (and every other) was dropped.
    pub fn latch(&self, name: impl Into<Arc<str>>) -> Latch {
        let component = Component::new(name.into(), Criticality::Critical, "not done yet");
        Latch { component: self.shared.add(component), shared: Arc::clone(&self.shared) }
    }

    /// A state that somebody pushes. It blocks readiness until it was well for the first
    /// time, and from then on as `criticality` says.
    pub fn signal(&self, name: impl Into<Arc<str>>, criticality: Criticality) -> Signal {
        let component = Component::new(name.into(), criticality, "not reported yet");
        Signal { component: self.shared.add(component), shared: Arc::clone(&self.shared) }
    }

    /// Probes in the background, at once and then at the check's interval. It blocks
    /// readiness until it passed for the first time, and from then on as its criticality
    /// says.
    ///
    /// # Errors
    ///
    /// All unusable settings at once; or no Tokio runtime to run the probe on.
    pub fn check(&self, check: Check) -> Result<(), HealthError> {
        check.validate()?;
        let Ok(runtime) = Handle::try_current() else {
            return HealthError::check(vec![format!(
                "check {:?}: must be added inside a Tokio runtime, which runs its probe",
                check.name
            )]);
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

    /// Whether this instance should get requests: one atomic load.
    pub fn is_ready(&self) -> bool {
        self.shared.ready.load(Ordering::Acquire)
    }

    /// Whether one component or group is out of readiness's way; `None` if there is none of
    /// that name.
    pub fn is_passing(&self, name: &str) -> Option<bool> {
        let components = self.shared.components();
        let called = components.iter().filter(|component| component.is_called(name));
        called.map(|component| !component.blocks()).reduce(|all, one| all && one)
    }

    /// Readiness now and each change of it. A receiver that is slow sees the last one.
    pub fn changes(&self) -> watch::Receiver<bool> {
        self.shared.changes.subscribe()
    }

    /// Each change of a component's status, in order, with readiness worked out before it is
    /// told. Listeners hold nothing up: one that is 64 changes behind misses the oldest and
    /// gets `RecvError::Lagged`.
    pub fn status_changes(&self) -> broadcast::Receiver<StatusChange> {
        self.shared.statuses.subscribe()
    }

    /// `GET /livez`, `/readyz`, `/readyz/{check}` and `/healthz`, for the admin listener.
    ///
    /// - `/livez`: 200 as long as the process answers. No dependency is looked at: a restart
    ///   doesn't mend a database.
    /// - `/readyz`: 200 or 503, with a line for each component that is in the way;
    ///   `?verbose` shows all. `?exclude=a,b` leaves some out.
    /// - `/readyz/{check}`: the same for one component or group; 404 if there is none of that
    ///   name. Where a group is excluded, so is everything in it.
    /// - `/healthz`: everything, as `application/health+json`
    ///   (draft-inadarei-api-health-check-06); 503 when something fails. `?exclude=a,b`.
    pub fn router(&self) -> Router {
        pages::router(self.clone())
    }

    /// Ends the background probes of all clones. States stay as they were last seen.
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
            .field("components", &self.shared.components.load())
            .finish()
    }
}

impl Shared {
    pub(super) fn components(&self) -> Arc<Vec<Arc<Component>>> {
        self.components.load_full()
    }

    pub(super) fn set(&self, component: &Component, state: State) {
        self.change(|| {
            let from = Some(component.shown().status);
            component.set(state);
            let to = Some(component.shown().status);
            StatusChange { name: Arc::clone(&component.name), from, to }
        });
    }

    fn add(&self, component: Component) -> Arc<Component> {
        let component = Arc::new(component);
        self.change(|| {
            self.components.rcu(|components| {
                let mut components = Vec::clone(components);
                components.push(Arc::clone(&component));
                components
            });
            let to = Some(component.shown().status);
            StatusChange { name: Arc::clone(&component.name), from: None, to }
        });
        component
    }

    fn remove(&self, component: &Arc<Component>) {
        self.change(|| {
            self.components.rcu(|components| {
                let mut components = Vec::clone(components);
                components.retain(|c| !Arc::ptr_eq(c, component));
                components
            });
            let from = Some(component.shown().status);
            StatusChange { name: Arc::clone(&component.name), from, to: None }
        });
    }

    /// Changes something and works readiness out inside the channel's lock, so that the last
    /// one to change a component is also the last to say what that means.
    fn change(&self, change: impl FnOnce() -> StatusChange) {
        self.changes.send_if_modified(|last| {
            let change = change();
            let components = self.components.load();
            let ready = !components.iter().any(|component| component.blocks());
            self.ready.store(ready, Ordering::Release);
            if change.from != change.to {
                // Nobody may listen.
                let _ = self.statuses.send(change);
            }
            let changed = *last != ready;
            *last = ready;
            changed
        });
    }
}

/// A startup step that isn't done. Dropping it says that it is.
///
/// Hold it in the task that does the step: if that task fails and drops it early, say so
/// by other means (return the error and don't serve).
#[must_use = "dropping the latch says that the step is done"]
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

/// The reporting end of a pushed state. Clones report to the same one.
///
/// What was said last stays, also when every clone is gone.
#[derive(Clone)]
pub struct Signal {
    component: Arc<Component>,
    shared: Arc<Shared>,
}

impl Signal {
    /// All is well.
    pub fn ok(&self) {
        self.say(Status::Pass, None);
    }

    /// Reported, but never in the way of readiness.
    pub fn warn(&self, reason: impl AsRef<str>) {
        self.say(Status::Warn, Some(reason.as_ref()));
    }

    /// Not well; what follows is up to the signal's [`Criticality`]. The reason is shown on
    /// the health pages without the userinfo of URLs and `password=` values.
    pub fn fail(&self, reason: impl AsRef<str>) {
        self.say(Status::Fail, Some(reason.as_ref()));
    }

    fn say(&self, status: Status, output: Option<&str>) {
        self.shared.set(&self.component, State::new(status, output, None));
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Signal").field(&self.component).finish()
    }
}
