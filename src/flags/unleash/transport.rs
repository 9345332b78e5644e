//! What the client's requests run on: limits of time and size, a check of the status, an ETag so that an unchanged state is
//! not downloaded again, and the server's `Retry-After`.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use http::{HeaderValue, StatusCode, header};
use unleash_api_client::http::{Method, Request, Response, Transport, TransportRef};

use super::backup::LARGEST_STATE;
use super::http_client::{Answer, HttpClient};
use crate::config::{redact, remember};
use crate::flags::error::{FetchError, FetchErrorKind, unavailable, wrong_url};

/// The longest `Retry-After` that is honoured. A change of a flag that switches a feature off must not arrive later.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60);

/// The transport of the client: this library's, or the application's.
pub(super) struct Checked {
    carrier: Carrier,
    token: String,
    time_limit: Duration,
    etag: Mutex<Etag>,
    connection: OnceLock<String>,
}

pub(super) enum Carrier {
    Own(Box<HttpClient>),
    Users(TransportRef),
}

#[derive(Default)]
struct Etag {
    /// That of the state in use.
    in_use: Option<HeaderValue>,
    /// That of the last answer, which may turn out to be unusable.
    received: Option<HeaderValue>,
}

/// Why there is no new state.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoState {
    #[error("the state is unchanged")]
    Unchanged,
    #[error("{error}")]
    Failed { error: FetchError, retry_after: Option<Duration> },
}

impl From<FetchError> for NoState {
    fn from(error: FetchError) -> Self {
        Self::Failed { error, retry_after: None }
    }
}

impl Checked {
    pub(super) fn new(carrier: Carrier, token: &str, time_limit: Duration) -> Self {
        remember(token);
        let token = token.to_owned();
        Self { carrier, token, time_limit, etag: Mutex::default(), connection: OnceLock::new() }
    }

    /// The id of this process in the client's requests; empty before the first.
    pub(super) fn connection(&self) -> &str {
        self.connection.get().map_or("", String::as_str)
    }

    /// The last answer is in use from now on, so that the server need not send it again.
    pub(super) fn confirm(&self) {
        let mut etag = self.etag();
        etag.in_use = etag.received.take();
    }

    fn etag(&self) -> MutexGuard<'_, Etag> {
        self.etag.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, request: Request, etag: Option<HeaderValue>) -> Result<Answer, FetchError> {
        let exchange = async {
            match &self.carrier {
                Carrier::Own(http) => http.send(request, etag).await,
                Carrier::Users(transport) => {
                    let response = transport.execute(request).await;
                    let response = response.map_err(|error| unavailable(format!("{error:#}")))?;
                    let status = StatusCode::from_u16(response.status);
                    let status = status.map_err(|error| unavailable(error.to_string()))?;
                    Ok(Answer { status, body: response.body.into(), ..Answer::default() })
                }
            }
        };
        let answer = tokio::time::timeout(self.time_limit, exchange).await;
        let answer =
            answer.unwrap_or_else(|_| Err(unavailable(format!("no answer within {:?}", self.time_limit))));
        let answer =
            answer.map_err(|error| FetchError { message: self.without_token(&error.message), ..error })?;
        if answer.body.len() > LARGEST_STATE {
            let bytes = answer.body.len();
            return Err(unavailable(format!(
                "the answer has {bytes} bytes, more than the limit of {LARGEST_STATE} bytes"
            )));
        }
        Ok(answer)
    }

    /// Whether an answer to a poll contains a state.
    fn check(&self, url: &str, answer: &Answer, knows_state: bool) -> Result<(), NoState> {
        let to = self.redirect(answer);
        let text = || format!("{url} answered {}{to}{}", answer.status, self.excerpt(&answer.body));
        let error = match answer.status {
            StatusCode::OK => return Ok(()),
            StatusCode::NOT_MODIFIED if knows_state => return Err(NoState::Unchanged),
            StatusCode::NOT_MODIFIED => unavailable(format!("{}, but has sent no state yet", text())),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => FetchError {
                kind: FetchErrorKind::TokenRefused,
                message: format!("the flag server refused the token ({})", text()),
            },
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => unavailable(text()),
            status if status.is_server_error() => unavailable(text()),
            _ => wrong_url(text()),
        };
        let retry_after = answer.headers.get(header::RETRY_AFTER).and_then(retry_after);
        Err(NoState::Failed { error, retry_after })
    }

    /// Where an answer leads to. It is not followed: another server must not get the token.
    fn redirect(&self, answer: &Answer) -> String {
        let to = answer.headers.get(header::LOCATION).filter(|_| answer.status.is_redirection());
        let Some(to) = to.and_then(|to| to.to_str().ok()) else { return String::new() };
        // Without what may be a secret.
        let place = to.split(['?', '#']).next().unwrap_or_default();
        format!(", and leads to {}; use the URL of the server itself", self.without_token(place))
    }

    /// The beginning of an answer, on one line and without the token.
    fn excerpt(&self, body: &Bytes) -> String {
        const MAX_CHARS: usize = 200;
        const SEARCHED: usize = 16 << 10;
        let shown = body.get(..SEARCHED).unwrap_or(body);
        let clean = self.without_token(&String::from_utf8_lossy(shown));
        let mut words: Vec<&str> = clean.split_whitespace().collect();
        if shown.len() < body.len() {
            // It may be the beginning of a token, which was not found.
            words.pop();
        }
        let line = words.join(" ");
        let line: String = line.chars().take(MAX_CHARS).collect();
        if line.is_empty() { line } else { format!(": {line}") }
    }

    fn without_token(&self, text: &str) -> String {
        redact(&text.replace(&self.token, "***"))
    }
}

#[async_trait]
impl Transport for Checked {
    async fn execute(&self, request: Request) -> Result<Response, anyhow::Error> {
        let connection = request.headers.iter().find(|(name, _)| name == "unleash-connection-id");
        if let Some((_, connection)) = connection {
            self.connection.get_or_init(|| connection.clone());
        }
        let (is_poll, url) = (request.method == Method::Get, request.url.clone());
        let known = if is_poll { self.etag().in_use.clone() } else { None };
        let mut answer = self.send(request, known.clone()).await.map_err(NoState::from)?;
        if is_poll {
            // The application's transport may know an ETag that is not known here.
            let knows_state = known.is_some() || matches!(self.carrier, Carrier::Users(_));
            self.check(&url, &answer, knows_state)?;
            self.etag().received = answer.headers.remove(header::ETAG);
        }
        Ok(Response { status: answer.status.as_u16(), body: answer.body.into() })
    }
}

/// The time until a request may be repeated (RFC 9110, section 10.2.3), limited.
fn retry_after(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    let pause = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => (DateTime::parse_from_rfc2822(text).ok()?.to_utc() - Utc::now()).to_std().ok()?,
    };
    Some(pause.min(LONGEST_RETRY_AFTER))
}
