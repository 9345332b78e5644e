//! Faults for the game day: variable `FAULT` gives a build one of these.
//!
//! | value | effect |
//! |---|---|
//! | `errors:2` | 2 % of all requests are answered with 500 |
//! | `panics:2` | 2 % of all requests panic |
//! | `slow:150` | each request takes 150 ms longer |
//! | `leaks` | each payment leaks a database connection |
//! | `never-ready` | a dependency is never reachable |
//! | `new-flow` | payments by the new flow are answered with 500 |

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

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// None.
    Nothing,
    /// This percentage of the requests fails.
    Errors(u8),
    /// This percentage of the requests panics.
    Panics(u8),
    /// Every request takes this much longer.
    Slow(Duration),
    /// Connections are not returned to the pool.
    Leaks,
    /// The instance never becomes ready.
    NeverReady,
    /// The new payment flow fails.
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
    /// The check that never passes, for [`Fault::NeverReady`].
    pub(crate) fn check(self) -> Option<Check> {
        let fails = || async { Err::<ProbeOutcome, _>("this dependency does not exist") };
        (self == Self::NeverReady).then(|| Check::new("missing-dependency", fails))
    }
}

/// Middleware that applies the fault.
#[expect(clippy::panic, reason = "the fault is a panic")]
pub(crate) async fn apply(
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
        Fault::Panics(percent) if is_among(percent) => panic!("FAULT=panics"),
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
