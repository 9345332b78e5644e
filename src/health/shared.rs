use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use tokio::sync::{broadcast, watch};

use super::component::{Component, Criticality, State, StatusChange};

/// Status changes that are kept for a slow subscriber. After that it misses the oldest, and gets an error that says so.
const STATUS_CHANGES: usize = 64;

/// All components and the readiness that follows from them.
pub(super) struct Shared {
    ready: AtomicBool,
    changes: watch::Sender<bool>,
    statuses: broadcast::Sender<StatusChange>,
    components: ArcSwap<Vec<Arc<Component>>>,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            ready: AtomicBool::new(true),
            changes: watch::Sender::new(true),
            statuses: broadcast::Sender::new(STATUS_CHANGES),
            components: ArcSwap::default(),
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    pub(super) fn changes(&self) -> watch::Receiver<bool> {
        self.changes.subscribe()
    }

    pub(super) fn status_changes(&self) -> broadcast::Receiver<StatusChange> {
        self.statuses.subscribe()
    }

    pub(super) fn components(&self) -> Arc<Vec<Arc<Component>>> {
        self.components.load_full()
    }

    pub(super) fn set(&self, component: &Component, state: State) {
        self.update(component, || component.set(state));
    }

    pub(super) fn set_criticality(&self, component: &Component, criticality: Criticality) {
        self.update(component, || component.set_criticality(criticality));
    }

    pub(super) fn add(&self, component: Component) -> Arc<Component> {
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

    pub(super) fn remove(&self, component: &Arc<Component>) {
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

    fn update(&self, component: &Component, update: impl FnOnce()) {
        self.change(|| {
            let from = Some(component.shown().status);
            update();
            let to = Some(component.shown().status);
            StatusChange { name: Arc::clone(&component.name), from, to }
        });
    }

    /// Applies a change and computes readiness inside the channel's lock, so that readiness always belongs to the last
    /// change.
    fn change(&self, change: impl FnOnce() -> StatusChange) {
        self.changes.send_if_modified(|last| {
            let change = change();
            let components = self.components.load();
            let ready = !components.iter().any(|component| component.blocks());
            self.ready.store(ready, Ordering::Release);
            if change.from != change.to {
                // An error means only that there is no subscriber.
                let _ = self.statuses.send(change);
            }
            let changed = *last != ready;
            *last = ready;
            changed
        });
    }
}
