use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use ::http::Method;
use arc_swap::ArcSwap;

use super::route::Route;

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

/// Every route that was declared or has had a request. A router has a fixed number of them.
pub(super) struct Http {
    routes: ArcSwap<HashMap<Box<str>, Arc<Route>>>,
    grow: Mutex<()>,
}

impl Http {
    pub(super) fn new() -> Self {
        let http = Self { routes: ArcSwap::default(), grow: Mutex::default() };
        // Zero series from the first scrape on, before any request.
        http.route(UNMATCHED).declare(0);
        http
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
        let route = Arc::clone(routes.entry(name.into()).or_insert_with(|| Arc::new(Route::new(name))));
        self.routes.store(Arc::new(routes));
        route
    }

    pub(super) fn routes(&self) -> Vec<Arc<Route>> {
        self.routes.load().values().cloned().collect()
    }
}
