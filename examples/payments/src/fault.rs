//! A build with a mistake in it, for seeing what becomes of one: set `FAULT` to one of these.
//!
//! | value | what the build does |
//! |---|---|
//! | `errors:2` | answers 2 % of all requests with 500 |
//! | `panics:2` | panics at 2 % of all requests |
//! | `slow:150` | takes 150 ms longer for each request |
//! | `leaks` | keeps a database connection for ever at each payment |
//! | `never-ready` | has a dependency that is not there |
//! | `new-flow` | answers payments of the new flow with 500 |

use std::str::FromStr;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use cutover::flags::Decisions;
use cutover::health::{Check, ProbeOutcome};
use sqlx::PgPool;

use crate::http::NEW_FLOW;

/// A mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// None.
    Nothing,
    /// So many per cent of the requests fail.
    Errors(u8),
    /// So many per cent of the requests panic.
    Panics(u8),
    /// Everything takes so much longer.
    Slow(Duration),
    /// Connections are not given back.
    Leaks,
    /// It never becomes ready.
    NeverReady,
    /// The new flow fails.
    NewFlow,
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, number) =
            text.split_once(':').map_or((text, None), |(name, number)| (name, number.parse().ok()));
        match (name, number) {
            ("errors", Some(percent @ 0..=100)) => Ok(Self::Errors(percent as u8)),
            ("panics", Some(percent @ 0..=100)) => Ok(Self::Panics(percent as u8)),
            ("slow", Some(ms)) => Ok(Self::Slow(Duration::from_millis(ms))),
            ("leaks", None) => Ok(Self::Leaks),
            ("never-ready", None) => Ok(Self::NeverReady),
            ("new-flow", None) => Ok(Self::NewFlow),
            _ => Err(format!(
                "FAULT: {text:?} is none of errors:2, panics:2, slow:150, leaks, never-ready, new-flow"
            )),
        }
    }
}

impl Fault {
    /// The check that never passes, where that is the mistake.
    pub(crate) fn check(self) -> Option<Check> {
        let fails = || async { Err::<ProbeOutcome, _>("there is no such thing") };
        (self == Self::NeverReady).then(|| Check::new("missing-dependency", fails))
    }
}

/// Makes the mistake, or passes the request on.
#[expect(clippy::panic, reason = "that is the mistake")]
pub(crate) async fn make(
    State((fault, pool)): State<(Fault, PgPool)>,
    decisions: Decisions,
    request: Request,
    next: Next,
) -> Response {
    let is_payment = request.method() == Method::PUT;
    let is_among = |percent: u8| fastrand::u8(0..100) < percent;
    match fault {
        Fault::Errors(percent) if is_among(percent) => {
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
        Fault::Panics(percent) if is_among(percent) => panic!("this build has a mistake in it"),
        Fault::NewFlow if is_payment && decisions.decide(&NEW_FLOW) => {
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
        Fault::Slow(time) => tokio::time::sleep(time).await,
        Fault::Leaks if is_payment => {
            if let Ok(connection) = pool.acquire().await {
                std::mem::forget(connection);
            }
        }
        _ => {}
    }
    next.run(request).await
}
