//! A flag server on a real socket whose answers the test sets.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::BodyExt;

use super::UnleashOptions;
use crate::flags::{Flag, Flags};

pub(super) const A: Flag = Flag::new("a", false);
/// The same flag with another default.
pub(super) const A_DEFAULT_ON: Flag = Flag::new("a", true);
pub(super) const LIMIT: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub(super) enum Reply {
    Features(String),
    Status(StatusCode, String),
    /// An answer with a header.
    With(StatusCode, (header::HeaderName, String), Vec<u8>),
    /// The server accepts the request and never answers.
    Hang,
}

/// A request that the server received.
pub(super) struct Seen {
    method: Method,
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    body: String,
    refused: bool,
}

/// Answers GET requests with `reply`, and other requests with 202.
#[derive(Clone)]
pub(super) struct Server {
    url: String,
    reply: Arc<Mutex<Reply>>,
    refuse_posts: Arc<AtomicBool>,
    pub(super) seen: Arc<Mutex<Vec<Seen>>>,
}

/// Flags as (name, enabled, payload of the only variant).
pub(super) fn features(of: &[(&str, bool, &str)]) -> Reply {
    let features: Vec<_> = of
        .iter()
        .map(|(name, enabled, payload)| {
            let variant = serde_json::json!({
                "name": "v", "weight": 1000, "stickiness": "default",
                "payload": {"type": "string", "value": payload},
            });
            serde_json::json!({
                "name": name, "enabled": enabled, "strategies": [{
                    "name": "flexibleRollout",
                    "parameters": {"rollout": "100", "stickiness": "default", "groupId": name},
                    "variants": if payload.is_empty() { vec![] } else { vec![variant] },
                }],
            })
        })
        .collect();
    Reply::Features(serde_json::json!({"version": 2, "features": features}).to_string())
}

impl Server {
    pub(super) async fn start(reply: Reply) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            url: format!("http://{}", listener.local_addr().unwrap()),
            reply: Arc::new(Mutex::new(reply)),
            refuse_posts: Arc::default(),
            seen: Arc::default(),
        };
        let handler = server.clone();
        let app = Router::new().fallback(async move |request| handler.answer(request).await);
        tokio::spawn(async move { axum::serve(listener, app).await });
        server
    }

    async fn answer(&self, request: Request<Body>) -> Response {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let asked = head.headers.get(header::IF_NONE_MATCH).cloned();
        let poll = head.method == Method::GET;
        let refused = !poll && self.refuse_posts.load(Ordering::SeqCst);
        self.seen.lock().unwrap().push(Seen {
            method: head.method,
            path: head.uri.path().to_owned(),
            headers: head.headers,
            body: String::from_utf8(body.into()).unwrap(),
            refused,
        });
        if refused {
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        if !poll {
            return StatusCode::ACCEPTED.into_response();
        }
        let reply = self.reply.lock().unwrap().clone();
        match reply {
            Reply::Hang => std::future::pending().await,
            Reply::Status(status, text) => (status, [(header::ETAG, "\"bad\"")], text).into_response(),
            Reply::With(status, header, body) => (status, [header], body).into_response(),
            Reply::Features(text) => {
                let etag = format!("\"{}\"", text.len());
                if asked.is_some_and(|asked| asked.as_bytes() == etag.as_bytes()) {
                    return StatusCode::NOT_MODIFIED.into_response();
                }
                ([(header::ETAG, etag)], text).into_response()
            }
        }
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn reply(&self, reply: Reply) {
        *self.reply.lock().unwrap() = reply;
    }

    pub(super) fn options(&self) -> UnleashOptions {
        UnleashOptions {
            interval: Duration::from_millis(20),
            // As short as a busy machine allows.
            time_limit: Duration::from_millis(400),
            stale_after: Duration::from_millis(1_200),
            ..UnleashOptions::new(&self.url, "token", "app", "one")
        }
    }

    pub(super) fn polls(&self) -> usize {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|seen| seen.method == Method::GET).count()
    }

    pub(super) async fn polled_again(&self) {
        // Two more, because a poll in progress may still get the previous reply.
        let enough = self.polls() + 2;
        until("another poll", || self.polls() >= enough).await;
    }

    pub(super) fn bodies(&self, path: &str) -> Vec<serde_json::Value> {
        self.sent(path, |_| true)
    }

    pub(super) fn accepted(&self, path: &str) -> Vec<serde_json::Value> {
        self.sent(path, |seen| !seen.refused)
    }

    fn sent(&self, path: &str, which: impl Fn(&Seen) -> bool) -> Vec<serde_json::Value> {
        let seen = self.seen.lock().unwrap();
        let sent = seen.iter().filter(|seen| seen.path == path && which(seen));
        sent.map(|seen| serde_json::from_str(&seen.body).unwrap()).collect()
    }

    pub(super) fn refuse_posts(&self, refuse: bool) {
        self.refuse_posts.store(refuse, Ordering::SeqCst);
    }
}

pub(super) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.expect(what);
}

pub(super) async fn start(server: &Server) -> Flags {
    let flags = Flags::unleash(server.options()).unwrap();
    tokio::time::timeout(LIMIT, flags.ready()).await.unwrap();
    flags
}

/// Whether the metrics of `flags` contain a line.
pub(super) fn metrics(flags: &Flags) -> impl Fn(&str) -> bool + use<> {
    let registry = prometheus::Registry::new();
    flags.register(&registry, &crate::release::Release::new("app", "stable").unwrap()).unwrap();
    move |line| {
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        text.lines().any(|other| other == line)
    }
}
