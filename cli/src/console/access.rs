//! Who may use the page: the access token, and no page of another site.

use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Form;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, COOKIE, HOST, LOCATION, ORIGIN, RETRY_AFTER, SET_COOKIE};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::{Handle, Shared, pages};

/// Wrong tokens per [`WINDOW`]. A token of 16 characters cannot be guessed at this rate.
const ATTEMPTS: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);
const COOKIE_NAME: &str = "cutover-console";

pub(super) struct Access {
    token: Option<String>,
    /// What a browser sends after it has logged in.
    session: String,
    /// Only this machine can connect.
    is_local: bool,
    failures: Mutex<(Instant, u32)>,
}

impl Access {
    pub(super) fn new(token: Option<String>, is_local: bool) -> Self {
        Self { token, session: secret(), is_local, failures: Mutex::new((Instant::now(), 0)) }
    }

    /// Whether the request comes with the token or after a login, where a token is required.
    fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(token) = &self.token else { return true };
        let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let bearer = text(AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
        let mut cookies = text(COOKIE).unwrap_or_default().split(';');
        let cookie = cookies.find_map(|cookie| cookie.trim().strip_prefix(COOKIE_NAME)?.strip_prefix('='));
        cookie.is_some_and(|session| is_equal(session, &self.session))
            || bearer.is_some_and(|bearer| self.is_token(bearer, token) == Some(true))
    }

    /// `None` after too many wrong tokens.
    fn is_token(&self, given: &str, token: &str) -> Option<bool> {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.0.elapsed() >= WINDOW {
            *failures = (Instant::now(), 0);
        }
        if failures.1 >= ATTEMPTS {
            return None;
        }
        let is_right = is_equal(given, token);
        failures.1 += u32::from(!is_right);
        Some(is_right)
    }
}

/// A random text that cannot be guessed.
pub(super) fn secret() -> String {
    let mut bytes = [0; 32];
    // It fails only if the operating system has no randomness. Then nothing could be kept secret.
    let filled = rustls::crypto::ring::default_provider().secure_random.fill(&mut bytes);
    assert!(filled.is_ok(), "the operating system gives no random bytes");
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Compares in a time that does not depend on where the two differ.
pub(super) fn is_equal(one: &str, other: &str) -> bool {
    let (one, other) = (Sha256::digest(one), Sha256::digest(other));
    one.iter().zip(&other).fold(0, |differs, (one, other)| differs | (one ^ other)) == 0
}

/// Refuses requests that a page of another site sends.
pub(super) async fn same_site(State(shared): Handle, request: Request, next: Next) -> Response {
    match refusal(&shared, request.method(), request.headers()) {
        Some(refusal) => refusal,
        None => next.run(request).await,
    }
}

fn refusal(shared: &Shared, method: &Method, headers: &HeaderMap) -> Option<Response> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let host = text(HOST);
    let name = host.rsplit_once(':').filter(|(_, port)| !port.contains(']')).map_or(host, |(name, _)| name);
    // A name of another site that resolves to this machine reaches it, too.
    if shared.access.is_local && !["localhost", "127.0.0.1", "[::1]"].contains(&name) {
        let problem =
            format!("the console does not answer for host {host:?}; open the address that it printed");
        return Some((StatusCode::MISDIRECTED_REQUEST, pages::alone(&problem)).into_response());
    }
    let origin = text(ORIGIN);
    let is_own = ["http://", "https://"].iter().any(|scheme| origin.strip_prefix(scheme) == Some(host));
    if *method == Method::POST && headers.contains_key(ORIGIN) && !is_own {
        let problem = "the request comes from a page of another site; nothing was changed";
        return Some((StatusCode::FORBIDDEN, pages::alone(problem)).into_response());
    }
    None
}

/// Asks for the token where one is required.
pub(super) async fn check(State(shared): Handle, request: Request, next: Next) -> Response {
    if shared.access.admits(request.headers()) {
        return next.run(request).await;
    }
    if *request.method() == Method::GET && !request.uri().path().ends_with("/events") {
        return redirect("/login");
    }
    (StatusCode::UNAUTHORIZED, pages::alone("the console needs its access token; nothing was changed"))
        .into_response()
}

#[derive(serde::Deserialize)]
pub(super) struct Login {
    token: String,
}

pub(super) async fn login_page() -> Response {
    pages::login(None).into_response()
}

pub(super) async fn login(State(shared): Handle, Form(login): Form<Login>) -> Response {
    let access = &shared.access;
    match access.token.as_ref().map_or(Some(true), |token| access.is_token(login.token.trim(), token)) {
        Some(true) => {
            let cookie = format!("{COOKIE_NAME}={}; HttpOnly; SameSite=Strict; Path=/", access.session);
            ([(SET_COOKIE, cookie)], redirect("/")).into_response()
        }
        Some(false) => {
            (StatusCode::UNAUTHORIZED, pages::login(Some("This is not the token."))).into_response()
        }
        None => {
            let page = pages::login(Some("Too many wrong tokens. Try again in a minute."));
            (StatusCode::TOO_MANY_REQUESTS, [(RETRY_AFTER, WINDOW.as_secs().to_string())], page)
                .into_response()
        }
    }
}

pub(super) fn redirect(to: &str) -> Response {
    (StatusCode::SEE_OTHER, [(LOCATION, to)]).into_response()
}
