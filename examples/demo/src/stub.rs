//! An in-memory replacement of the payments service, with the same answers.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

/// The stub's fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    #[default]
    None,
    /// Accepts every third payment without storing it.
    LosesWrites,
    /// Answers every 50th request with 503.
    Overloaded,
    /// Loses the session at every tenth visit.
    LosesSessions,
}

pub(crate) struct Stub {
    pub(crate) address: SocketAddr,
    pub(crate) memory: Arc<Memory>,
    server: JoinHandle<()>,
}

pub(crate) struct Memory {
    name: String,
    fault: Fault,
    is_ready: AtomicBool,
    requests: AtomicU64,
    pub(crate) orders: Mutex<HashMap<u64, String>>,
    visits: Mutex<HashMap<String, u64>>,
}

type Shared = State<Arc<Memory>>;

impl Stub {
    pub(crate) async fn start(name: &str) -> Self {
        Self::with(name, Fault::None, HashMap::new()).await
    }

    pub(crate) async fn with(name: &str, fault: Fault, orders: HashMap<u64, String>) -> Self {
        let memory = Arc::new(Memory {
            name: name.to_owned(),
            fault,
            is_ready: AtomicBool::new(true),
            requests: AtomicU64::new(0),
            orders: Mutex::new(orders),
            visits: Mutex::default(),
        });
        let app = Router::new()
            .route("/who", get(|State(memory): Shared| async move { memory.name.clone() }))
            .route("/readyz", get(ready))
            .route("/login", post(login))
            .route("/me", get(me))
            .route("/orders", post(make))
            .route("/orders/{id}", get(read))
            .route("/orders/{id}/payment", put(pay))
            .with_state(Arc::clone(&memory));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, memory, server }
    }

    pub(crate) fn set_ready(&self, is_ready: bool) {
        self.memory.is_ready.store(is_ready, Ordering::Relaxed);
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Memory {
    /// True on every `nth` call, if the stub has this fault.
    fn fails(&self, fault: Fault, nth: u64) -> bool {
        self.fault == fault && self.requests.fetch_add(1, Ordering::Relaxed) % nth == nth - 1
    }
}

async fn ready(State(memory): Shared) -> StatusCode {
    match memory.is_ready.load(Ordering::Relaxed) {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    }
}

async fn login(State(memory): Shared, Json(body): Json<Value>) -> Response {
    let user = body["user"].as_str().unwrap().to_owned();
    let cookie = format!("sid={user}; Path=/; HttpOnly");
    memory.visits.lock().unwrap().insert(user, 0);
    ([(header::SET_COOKIE, cookie)], "").into_response()
}

async fn me(State(memory): Shared, headers: HeaderMap) -> Response {
    let cookie = headers.get(header::COOKIE).map(|cookie| cookie.to_str().unwrap().to_owned());
    let user = cookie.and_then(|cookie| cookie.strip_prefix("sid=").map(str::to_owned));
    let mut visits = memory.visits.lock().unwrap();
    let lost = memory.fails(Fault::LosesSessions, 10);
    match user.and_then(|user| visits.get_mut(&user).map(|visits| (user, visits))) {
        Some((user, visits)) if !lost => {
            *visits += 1;
            Json(json!({ "user": user, "visits": *visits })).into_response()
        }
        _ => StatusCode::UNAUTHORIZED.into_response(),
    }
}

async fn make(State(memory): Shared) -> Response {
    let mut orders = memory.orders.lock().unwrap();
    let id = orders.keys().max().unwrap_or(&0) + 1;
    orders.insert(id, "pending".to_owned());
    (StatusCode::CREATED, Json(json!({ "id": id, "status": "pending" }))).into_response()
}

async fn read(State(memory): Shared, Path(id): Path<u64>) -> Response {
    if memory.fails(Fault::Overloaded, 50) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    match memory.orders.lock().unwrap().get(&id) {
        Some(status) => Json(json!({ "id": id, "status": status })).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn pay(State(memory): Shared, Path(id): Path<u64>, Json(body): Json<Value>) -> Response {
    let status = body["status"].as_str().unwrap().to_owned();
    if !memory.fails(Fault::LosesWrites, 3) {
        memory.orders.lock().unwrap().insert(id, status.clone());
    }
    Json(json!({ "id": id, "status": status, "flow": "legacy" })).into_response()
}
