use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use super::bounds::Bounds;
use super::labels::UNMATCHED;
use super::route::Route;

/// Every route that was declared or has had a request. A router has a fixed number of them.
pub(super) struct Http {
    routes: ArcSwap<HashMap<Box<str>, Arc<Route>>>,
    grow: Mutex<()>,
    pub(super) bounds: Arc<Bounds>,
    /// Whether a page with exemplars has been asked for. Until then, no request looks for its trace, which would cost more
    /// than everything else that is recorded of it.
    exemplars: AtomicBool,
}

impl Http {
    pub(super) fn new(bounds: Bounds) -> Self {
        let (routes, grow, bounds) = (ArcSwap::default(), Mutex::default(), Arc::new(bounds));
        let http = Self { routes, grow, bounds, exemplars: AtomicBool::new(false) };
        // The series exist from the first scrape on, before any request.
        http.route(UNMATCHED).declare(0);
        http
    }

    /// Requests keep their traces as exemplars from now on.
    pub(super) fn keep_exemplars(&self) {
        self.exemplars.store(true, Relaxed);
    }

    #[inline]
    pub(super) fn keeps_exemplars(&self) -> bool {
        self.exemplars.load(Relaxed)
    }

    pub(super) fn known(&self, name: &str) -> Option<Arc<Route>> {
        self.routes.load().get(name).cloned()
    }

    pub(super) fn route(&self, name: &str) -> Arc<Route> {
        if let Some(route) = self.known(name) {
            return route;
        }
        let _grow = self.grow.lock().unwrap_or_else(PoisonError::into_inner);
        let mut routes = HashMap::clone(&self.routes.load());
        let route =
            Arc::clone(routes.entry(name.into()).or_insert_with(|| Arc::new(Route::new(name, &self.bounds))));
        self.routes.store(Arc::new(routes));
        route
    }

    pub(super) fn routes(&self) -> Vec<Arc<Route>> {
        self.routes.load().values().cloned().collect()
    }
}
