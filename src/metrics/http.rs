use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use ::http::Method;
use arc_swap::ArcSwap;

use super::series::{Gauge, Series};

/// Route of requests that no route matched. The raw path never becomes a label.
pub(super) const UNMATCHED: &str = "unmatched";

/// The methods that have a label of their own, the most frequent first.
pub(super) const METHODS: [&str; 10] =
    ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "CONNECT", "TRACE", "other"];
const OTHER: u8 = 9;

/// Index into [`METHODS`]; anything a client made up is `other`.
pub(super) fn method_index(method: &Method) -> u8 {
    match *method {
        Method::GET => 0,
        Method::POST => 1,
        Method::PUT => 2,
        Method::PATCH => 3,
        Method::DELETE => 4,
        Method::HEAD => 5,
        Method::OPTIONS => 6,
        Method::CONNECT => 7,
        Method::TRACE => 8,
        _ => OTHER,
    }
}

/// Why a response didn't get to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Abort {
    /// The future or the body was dropped: the client is gone.
    Dropped,
    Panic,
    BodyError,
    ServiceError,
}

impl Abort {
    pub(super) const ALL: [Self; 4] = [Self::Dropped, Self::Panic, Self::BodyError, Self::ServiceError];

    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Dropped => "dropped",
            Self::Panic => "panic",
            Self::BodyError => "body_error",
            Self::ServiceError => "service_error",
        }
    }

    /// 499 is what proxies log for a client that went away; it is nobody's 5xx.
    pub(super) fn status(self) -> u16 {
        match self {
            Self::Dropped => 499,
            Self::Panic | Self::BodyError | Self::ServiceError => 500,
        }
    }
}

#[derive(Clone)]
pub(super) struct Entry {
    pub(super) method: u8,
    pub(super) status: u16,
    pub(super) series: Arc<Series>,
}

/// All series of one route. Read without a lock; the lock is for adding an entry.
pub(super) struct Route {
    pub(super) name: Box<str>,
    pub(super) in_flight: Arc<Gauge>,
    entries: ArcSwap<Vec<Entry>>,
    aborts: [[AtomicU64; Abort::ALL.len()]; METHODS.len()],
    grow: Mutex<()>,
}

impl Route {
    fn new(name: &str, in_flight: Arc<Gauge>) -> Self {
        Self {
            name: name.into(),
            in_flight,
            entries: ArcSwap::default(),
            aborts: Default::default(),
            grow: Mutex::default(),
        }
    }

    /// Hands the series to `with`, making it if this is its first use. The first request of
    /// a method also makes its `200` and `500`: `rate()` doesn't see a series' first step if
    /// the series appears with it, so the first failure of a quiet canary would be missed.
    pub(super) fn with<T>(&self, method: u8, status: u16, with: impl FnOnce(&Series) -> T) -> T {
        if let Some(entry) = find(&self.entries.load(), method, status) {
            return with(&entry.series);
        }
        let _grow = self.grow.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entries = Vec::clone(&self.entries.load());
        for status in [200, 500, status] {
            if find(&entries, method, status).is_none() {
                entries.push(Entry { method, status, series: Arc::default() });
            }
        }
        let entries = Arc::new(entries);
        self.entries.store(Arc::clone(&entries));
        // The entry was pushed above unless another thread did so first.
        match find(&entries, method, status) {
            Some(entry) => with(&entry.series),
            None => with(&Series::default()),
        }
    }

    pub(super) fn abort(&self, method: u8, abort: Abort) {
        self.aborts[usize::from(method)][abort as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn entries(&self) -> Arc<Vec<Entry>> {
        self.entries.load_full()
    }

    pub(super) fn aborts(&self, method: u8, abort: Abort) -> u64 {
        self.aborts[usize::from(method)][abort as usize].load(Relaxed)
    }
}

fn find(entries: &[Entry], method: u8, status: u16) -> Option<&Entry> {
    entries.iter().find(|entry| entry.method == method && entry.status == status)
}

/// Every route seen so far. A router has a fixed number of them.
pub(super) struct Http {
    pub(super) in_flight: Arc<Gauge>,
    routes: ArcSwap<HashMap<Box<str>, Arc<Route>>>,
    grow: Mutex<()>,
}

impl Http {
    pub(super) fn new() -> Self {
        let http = Self { in_flight: Arc::default(), routes: ArcSwap::default(), grow: Mutex::default() };
        // Zero series from the first scrape on, before any request.
        http.route(UNMATCHED).with(0, 200, |_| ());
        http
    }

    pub(super) fn route(&self, name: &str) -> Arc<Route> {
        if let Some(route) = self.routes.load().get(name) {
            return Arc::clone(route);
        }
        let _grow = self.grow.lock().unwrap_or_else(PoisonError::into_inner);
        let mut routes = HashMap::clone(&self.routes.load());
        let route = routes
            .entry(name.into())
            .or_insert_with(|| Arc::new(Route::new(name, Arc::clone(&self.in_flight))));
        let route = Arc::clone(route);
        self.routes.store(Arc::new(routes));
        route
    }

    pub(super) fn routes(&self) -> Vec<Arc<Route>> {
        self.routes.load().values().cloned().collect()
    }
}
