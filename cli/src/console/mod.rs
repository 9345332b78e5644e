//! `cutover console`: a local web page over the ledgers alone, so it shows the migrations of every service of their databases.

mod access;
mod actions;
mod pages;
mod sides;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Form, Router};
use futures_util::stream;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::ledgers::{Database, code};
use crate::{complain, print};
use access::{Access, secret};
use cutover::console::{Feed, SCRIPT, STYLE, Shown, Topic, with_headers};

#[derive(clap::Args)]
pub(crate) struct Console {
    /// The address to serve on. An address other than loopback needs an access token
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7330")]
    listen: SocketAddr,
    /// A file with the access token that the page asks for
    #[arg(long, value_name = "FILE")]
    token_file: Option<std::path::PathBuf>,
    /// The access token. Prefer --token-file: other users of this machine can read arguments
    #[arg(long, env = "CUTOVER_CONSOLE_TOKEN", hide_env_values = true, conflicts_with = "token_file")]
    token: Option<String>,
    /// The Prometheus server that scrapes the service, to show latency of each side and shadow reads
    #[arg(long, env = "PROMETHEUS_URL", hide_env_values = true, value_name = "URL")]
    prometheus: Option<String>,
    /// With --prometheus: a matcher for all series, such as 'service="payments"'; repeatable
    #[arg(long = "match", value_name = "MATCHER", requires = "prometheus")]
    matchers: Vec<String>,
    /// Show only: refuse every action
    #[arg(long)]
    read_only: bool,
}

/// What the handlers share.
struct Shared {
    databases: Arc<[Database]>,
    feed: Feed,
    access: Access,
    /// A form without it does not come from one of our pages.
    csrf: String,
    /// The name that the form suggests, or `None` if several people may use the page.
    actor: Option<String>,
    read_only: bool,
}

type Handle = State<Arc<Shared>>;

/// Serves the page until Ctrl-C.
pub(crate) async fn run(databases: Vec<Database>, console: &Console, actor: &str) -> ExitCode {
    let token = match token(console) {
        Ok(token) => token,
        Err(problem) => {
            complain(&format!("cutover: {problem}"));
            return ExitCode::from(2);
        }
    };
    let prometheus = console.prometheus.as_deref().filter(|url| !url.is_empty());
    let sides = match prometheus.map(|url| sides::source(url, console.matchers.clone())) {
        Some(Err(problem)) => {
            complain(&format!("cutover: --prometheus: {problem}"));
            return ExitCode::from(2);
        }
        Some(Ok(sides)) => Some(sides),
        None => None,
    };
    // One of several may be unreachable. The page shows that.
    if let [only] = &databases[..]
        && let Err(error) = only.ledger().await
    {
        complain(&format!("cutover: {}", only.describe(&error)));
        return ExitCode::from(code(&error));
    }
    let databases: Arc<[Database]> = databases.into();
    let listener = match TcpListener::bind(console.listen).await {
        Ok(listener) => listener,
        Err(error) => {
            complain(&format!(
                "cutover: cannot listen on {}: {error}; name another address with --listen",
                console.listen
            ));
            return ExitCode::from(2);
        }
    };
    let address = listener.local_addr().unwrap_or(console.listen);
    let is_local = address.ip().is_loopback();
    let shared = Arc::new(Shared {
        feed: Feed::new(Arc::clone(&databases)).with_sides(sides),
        databases,
        access: Access::new(token, is_local),
        csrf: secret(),
        actor: is_local.then(|| actor.to_owned()),
        read_only: console.read_only,
    });
    print(&format!("the console is at http://{address}/ (Ctrl-C ends it)\n"));
    let serve = axum::serve(listener, router(shared));
    tokio::select! {
        result = serve => if let Err(error) = result {
            complain(&format!("cutover: the console has ended: {error}"));
            return ExitCode::from(1);
        },
        // Open event streams would delay a graceful end, and nothing is lost without one.
        _ = tokio::signal::ctrl_c() => {}
    }
    ExitCode::SUCCESS
}

/// The token, or why the console cannot start.
fn token(console: &Console) -> Result<Option<String>, String> {
    let token = match (&console.token_file, &console.token) {
        (Some(file), _) => Some(
            std::fs::read_to_string(file)
                .map_err(|error| format!("cannot read --token-file {}: {error}", file.display()))?,
        ),
        (None, token) => token.clone(),
    };
    let token = token.map(|token| token.trim().to_owned());
    match token {
        Some(token) if token.len() < 16 => Err("the access token must have at least 16 characters; \
             for example `openssl rand -hex 16 > token` and --token-file token"
            .into()),
        None if !console.listen.ip().is_loopback() => Err(format!(
            "{} is reachable from other machines, so the console needs an access token: \
             `openssl rand -hex 16 > token` and --token-file token, or listen on 127.0.0.1",
            console.listen
        )),
        token => Ok(token),
    }
}

fn router(shared: Arc<Shared>) -> Router {
    let one = Router::new()
        .route("/migrations/{fleet}/{name}", get(migration))
        .route("/migrations/{fleet}/{name}/events", get(migration_events))
        .route("/migrations/{fleet}/{name}/action", post(act));
    Router::new()
        .route("/", get(list))
        .route("/events", get(list_events))
        .merge(one.clone())
        .nest("/ledgers/{ledger}", one)
        .layer(from_fn_with_state(Arc::clone(&shared), access::check))
        .route("/login", get(access::login_page).post(access::login))
        .route("/style.css", get(([(CONTENT_TYPE, "text/css; charset=utf-8")], STYLE)))
        .route("/script.js", get(([(CONTENT_TYPE, "text/javascript; charset=utf-8")], SCRIPT)))
        .layer(from_fn_with_state(Arc::clone(&shared), access::same_site))
        .layer(map_response(with_headers))
        .with_state(shared)
}

/// A migration, as its address names it.
#[derive(serde::Deserialize)]
struct Target {
    ledger: Option<String>,
    fleet: String,
    name: String,
}

impl Target {
    /// `None` if there is no ledger of this name.
    fn topic(self, shared: &Shared) -> Option<Topic> {
        let ledger = shared.databases.iter().position(|one| one.name == self.ledger)?;
        Some(Topic { ledger, name: format!("{}/{}", self.fleet, self.name) })
    }
}

fn no_ledger(shared: &Shared) -> Response {
    let names: Vec<&str> = shared.databases.iter().filter_map(|one| one.name.as_deref()).collect();
    let problem = format!("there is no ledger of this name; the console has {}", names.join(", "));
    (StatusCode::NOT_FOUND, pages::alone(&problem)).into_response()
}

async fn list(State(shared): Handle) -> Response {
    let shown = shared.feed.now(None).await;
    (shown.status, pages::list(&shown.html)).into_response()
}

async fn list_events(State(shared): Handle) -> Response {
    events(shared.feed.subscribe(None))
}

async fn migration(State(shared): Handle, Path(target): Path<Target>) -> Response {
    let Some(topic) = target.topic(&shared) else { return no_ledger(&shared) };
    let shown = shared.feed.now(Some(&topic)).await;
    let form = shown.plan.as_ref().map(|plan| actions::form(&shared, &topic, plan));
    (shown.status, pages::migration(&shared.title(&topic), &shown.html, form.as_ref())).into_response()
}

async fn migration_events(State(shared): Handle, Path(target): Path<Target>) -> Response {
    match target.topic(&shared) {
        Some(topic) => events(shared.feed.subscribe(Some(&topic))),
        None => no_ledger(&shared),
    }
}

async fn act(
    State(shared): Handle,
    Path(target): Path<Target>,
    Form(form): Form<actions::Action>,
) -> Response {
    let Some(topic) = target.topic(&shared) else { return no_ledger(&shared) };
    let address = shared.address(&topic);
    match actions::act(&shared, &topic, &form).await {
        // After a reload of the next page, the browser does not send the form again.
        Ok(()) => access::redirect(&address),
        Err((status, problem)) => (status, pages::refused(&topic.name, &address, &problem)).into_response(),
    }
}

impl Shared {
    fn ledger_name(&self, topic: &Topic) -> Option<&str> {
        self.databases[topic.ledger].name.as_deref()
    }

    fn address(&self, topic: &Topic) -> String {
        pages::address(self.ledger_name(topic), &topic.name)
    }

    /// The name of a migration, with its ledger if there are several.
    fn title(&self, topic: &Topic) -> String {
        match self.ledger_name(topic) {
            Some(ledger) => format!("{}, ledger {ledger}", topic.name),
            None => topic.name.clone(),
        }
    }
}

/// The part of the page that changes, whenever it has changed.
fn events(states: watch::Receiver<Option<Shown>>) -> Response {
    let states = stream::unfold(states, async |mut states| {
        states.changed().await.ok()?;
        let state = states.borrow_and_update().clone().unwrap_or_default();
        Some((Ok::<_, Infallible>(Event::default().event("state").data(&*state.html)), states))
    });
    Sse::new(states).keep_alive(KeepAlive::default()).into_response()
}
