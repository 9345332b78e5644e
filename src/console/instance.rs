//! The page of one instance.

use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue};
use axum::http::{HeaderName, StatusCode};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use sqlx::postgres::PgConnectOptions;

use super::{Database, Feed, Shown, Topic, pages};
use crate::ledger::Ledger;

/// The style sheet of every page.
pub const STYLE: &str = include_str!("style.css");
/// The script of every page.
pub const SCRIPT: &str = include_str!("script.js");
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// The page of one instance, for its admin listener. [`Cutover`](crate::Cutover) serves it at `/`.
#[derive(Clone)]
pub struct InstanceConsole {
    fleet: Arc<str>,
    feed: Arc<OnceLock<Feed>>,
}

impl std::fmt::Debug for InstanceConsole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InstanceConsole").field("fleet", &self.fleet).finish_non_exhaustive()
    }
}

impl InstanceConsole {
    /// The page of an instance of this fleet. It says that the instance starts until [`attach`](Self::attach) is called.
    pub fn new(fleet: &str) -> Self {
        Self { fleet: fleet.into(), feed: Arc::default() }
    }

    /// From now on, the page shows the migrations of the fleet in this ledger. A second call changes nothing.
    pub fn attach(&self, ledger: Ledger, options: PgConnectOptions) {
        let database = Database::connected(ledger, options);
        let _ = self.feed.set(Feed::of_fleet(database, &self.fleet));
    }

    /// The routes: `/`, `/migrations/{fleet}/{name}` and what these load. Only the platform and operators should reach them.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/", get(list))
            .route("/part", get(list_part))
            .route("/migrations/{fleet}/{name}", get(migration))
            .route("/migrations/{fleet}/{name}/part", get(migration_part))
            .route("/style.css", get(([(CONTENT_TYPE, "text/css; charset=utf-8")], STYLE)))
            .route("/script.js", get(([(CONTENT_TYPE, "text/javascript; charset=utf-8")], SCRIPT)))
            .layer(map_response(with_headers))
            .with_state(self.clone())
    }

    async fn shown(&self, topic: Option<&Topic>) -> Shown {
        match self.feed.get() {
            Some(feed) => feed.now(topic).await,
            None => Shown {
                html: pages::notice("The instance starts, or it has no Postgres.").into_string().into(),
                ..Shown::default()
            },
        }
    }

    /// `None` for a migration of another fleet.
    fn topic(&self, fleet: &str, name: &str) -> Option<Topic> {
        (fleet == &*self.fleet).then(|| Topic { ledger: 0, name: format!("{fleet}/{name}") })
    }

    fn page(&self, title: &str, shown: &Shown) -> Response {
        let about = format!("migrations of {}, read-only", self.fleet);
        let body = maud::html! {
            h1 { (title) }
            (pages::live(&shown.html, true))
        };
        (shown.status, pages::page(title, &about, &body)).into_response()
    }

    fn elsewhere(&self) -> Response {
        let problem = format!("this instance shows only migrations of fleet {}", self.fleet);
        (StatusCode::NOT_FOUND, pages::problem(&problem)).into_response()
    }
}

/// Adds the headers that keep other sites and caches away from a page.
pub async fn with_headers(mut response: Response) -> Response {
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, POLICY),
        (CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("x-content-type-options"), "nosniff"),
        // Not `no-referrer`: a browser then sends the origin `null` with a form.
        (HeaderName::from_static("referrer-policy"), "same-origin"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn list(State(console): State<InstanceConsole>) -> Response {
    let shown = console.shown(None).await;
    console.page("Migrations", &shown)
}

async fn list_part(State(console): State<InstanceConsole>) -> Response {
    let shown = console.shown(None).await;
    (shown.status, shown.html.to_string()).into_response()
}

async fn migration(
    State(console): State<InstanceConsole>,
    Path((fleet, name)): Path<(String, String)>,
) -> Response {
    let Some(topic) = console.topic(&fleet, &name) else { return console.elsewhere() };
    let shown = console.shown(Some(&topic)).await;
    console.page(&topic.name, &shown)
}

async fn migration_part(
    State(console): State<InstanceConsole>,
    Path((fleet, name)): Path<(String, String)>,
) -> Response {
    let Some(topic) = console.topic(&fleet, &name) else { return console.elsewhere() };
    let shown = console.shown(Some(&topic)).await;
    (shown.status, shown.html.to_string()).into_response()
}
