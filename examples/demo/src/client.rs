//! The HTTP client for instances and the proxy.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client as Legacy, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use serde_json::Value;

/// A pooled HTTP/1 client with a time limit for the whole response.
#[derive(Clone)]
pub(crate) struct Client {
    inner: Legacy<HttpConnector, Full<Bytes>>,
    limit: Duration,
}

/// A complete response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// The session cookie, if one was set: `name=value`.
    pub(crate) cookie: Option<HeaderValue>,
    pub(crate) body: Bytes,
}

impl Answer {
    /// The body as JSON; null if it is not JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// The user of a request, if that matters.
#[derive(Clone, Copy, Default)]
pub(crate) struct Who<'a> {
    pub(crate) cookie: Option<&'a HeaderValue>,
    /// The user that flags are decided for.
    pub(crate) user: Option<u32>,
}

/// Why there is no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// No connection could be opened: the request was not received.
    Unsent,
    /// The connection broke. The request may have been executed.
    Broken,
    /// The time limit expired. The request may have been executed, or may yet be.
    TimedOut,
}

impl NoAnswer {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Unsent => "connection refused",
            Self::Broken => "connection broken",
            Self::TimedOut => "no response within the time limit",
        }
    }
}

impl Client {
    pub(crate) fn new(limit: Duration) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let mut builder = Legacy::builder(TokioExecutor::new());
        let inner = builder.pool_timer(TokioTimer::new()).build(connector);
        Self { inner, limit }
    }

    pub(crate) async fn get(&self, url: &str) -> Result<Answer, NoAnswer> {
        self.send(Method::GET, url, Who::default(), None).await
    }

    pub(crate) async fn post(&self, url: &str) -> Result<Answer, NoAnswer> {
        self.send(Method::POST, url, Who::default(), None).await
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        url: &str,
        who: Who<'_>,
        json: Option<&Value>,
    ) -> Result<Answer, NoAnswer> {
        let mut request = Request::builder().method(method).uri(url);
        if let Some(cookie) = who.cookie {
            request = request.header(header::COOKIE, cookie);
        }
        if let Some(user) = who.user {
            request = request.header("x-user", user);
        }
        if json.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = Full::new(Bytes::from(json.map(Value::to_string).unwrap_or_default()));
        let request = request.body(body).map_err(|_| NoAnswer::Unsent)?;
        let answer = tokio::time::timeout(self.limit, async {
            let response = self.inner.request(request).await;
            let response = response.map_err(|error| match error.is_connect() {
                true => NoAnswer::Unsent,
                false => NoAnswer::Broken,
            })?;
            let (head, body) = response.into_parts();
            let body = body.collect().await.map_err(|_| NoAnswer::Broken)?.to_bytes();
            let cookie = head.headers.get(header::SET_COOKIE).and_then(pair);
            Ok(Answer { status: head.status, cookie, body })
        });
        answer.await.unwrap_or(Err(NoAnswer::TimedOut))
    }
}

/// Returns `name=value` of `name=value; Path=/; HttpOnly`.
fn pair(set_cookie: &HeaderValue) -> Option<HeaderValue> {
    let text = set_cookie.to_str().ok()?;
    HeaderValue::from_str(text.split(';').next()?).ok()
}
