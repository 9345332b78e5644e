//! Leaving without dropping a request: one sequence for SIGTERM, preStop and code.
//!
//! **Hazard.** Kubernetes takes a pod out of its endpoints at the same moment at which it
//! signals it, and proxies learn of it seconds later. A server that stops accepting at once
//! refuses requests that are still being sent to it; one that closes idle connections at
//! once resets requests that are on their way; and one that waits without bound for a
//! half-sent request head is killed in the middle of everything else.
//!
//! **What happens**, once, whoever asks first ([`Drain::begin`]):
//!
//! 1. Readiness goes down. Connections are still accepted. Every HTTP/1 response says
//!    `Connection: close`; HTTP/2 connections that were open get a GOAWAY.
//! 2. After [`propagation`](DrainOptions::propagation): no more connections are accepted,
//!    idle ones are closed, requests go on to the end of their bodies, [`WorkGuard`] to its end.
//! 3. At the deadline, which is [`grace`](DrainOptions::grace) less
//!    [`hook_time`](DrainOptions::hook_time) and [`margin`](DrainOptions::margin): what is
//!    left is closed by force and listed in the [`DrainReport`].
//! 4. Hooks run ([`Drain::on_drain`]); then [`Drain::serve`] returns the report. The
//!    process is never exited from here.
//!
//! **Differences from axum's `with_graceful_shutdown`.** That one refuses connections from
//! the first moment and has no deadline: a half-sent head or a mute HTTP/2 client holds it
//! up for ever.
//!
//! **Deployment caveat.** `grace` has to be the pod's `terminationGracePeriodSeconds`: a
//! preStop hook spends from the same period.
//!
//! **Long streams** (a watch, server-sent events: [`LongStream`]) would all last to the
//! deadline. They are ended at step 2, when their client finds another instance. Connections
//! that were upgraded (WebSocket) belong to the handler, which is waited for: end them on
//! [`Drain::begun`], with a close frame. At the deadline their reads and writes fail.
//!
//! # Defaults, and why
//!
//! | option | default | because |
//! |---|---|---|
//! | [`grace`](DrainOptions::grace) | 30 s | what Kubernetes gives a pod that says nothing |
//! | [`propagation`](DrainOptions::propagation) | 5 s | endpoints reach kube-proxy and Envoy within one or two seconds, and a slow one within five; whoever asks the pod's readiness needs `periodSeconds` × `failureThreshold` |
//! | [`hook_time`](DrainOptions::hook_time) | 3 s | flag metrics and the fleet's good-bye are one request each, with time limits of their own |
//! | [`margin`](DrainOptions::margin) | 1 s | to return from `main` before the kill |
//! | [`head_timeout`](DrainOptions::head_timeout) | 65 min | hyper counts idle time in; shorter than what a proxy keeps idle connections (Envoy: 1 h), requests race with the close |

mod app;
mod connection;
mod handle;
mod in_flight;
mod listen;
mod long;
mod options;
mod registry;
mod report;
mod sequence;
mod serve;
mod watched;

pub use app::App;
pub use handle::{Drain, WorkGuard};
pub use listen::Listen;
pub use long::LongStream;
pub use options::{DrainError, DrainOptions};
pub use report::{Cut, CutPhase, DrainReport, HookEnd, HookReport};

#[cfg(test)]
mod tests;
