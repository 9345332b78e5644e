//! Stops a process without dropping a request: one sequence for SIGTERM, preStop and code.
//!
//! **Hazard.** Kubernetes removes a pod from its endpoints at the same moment at which it signals the pod, and proxies
//! learn of it seconds later. A server that stops accepting at once refuses requests that are still sent to it. A server
//! that closes idle connections at once resets requests that are on their way. A server that waits without limit for a
//! half-sent request head is killed while other requests run.
//!
//! **The sequence** runs once, however often it is started ([`Drain::begin`]):
//!
//! 1. The instance becomes unready. Connections are still accepted. Every HTTP/1 response says `Connection: close`; HTTP/2
//!    connections that were open get a GOAWAY.
//! 2. After [`propagation`](DrainOptions::propagation), connections are no longer accepted and idle ones are closed.
//!    Requests continue until their bodies have ended, and [`WorkGuard`]s until they are dropped.
//! 3. At the deadline, which is [`grace`](DrainOptions::grace) less [`hook_time`](DrainOptions::hook_time) and
//!    [`margin`](DrainOptions::margin), the rest is closed by force and listed in the [`DrainReport`].
//! 4. The hooks run ([`Drain::on_drain`]). Then [`Drain::serve`] returns the report. This module never exits the process.
//!
//! A second SIGTERM or SIGINT skips to step 3, and a third one also skips the hooks, for a person or a supervisor that cannot
//! wait.
//!
//! **Differences from axum's `with_graceful_shutdown`.** axum refuses connections from the first moment and has no
//! deadline: a half-sent head or a silent HTTP/2 client delays it forever.
//!
//! **Deployment caveat.** `grace` has to be the pod's `terminationGracePeriodSeconds`: a preStop hook uses up the same
//! period.
//!
//! **Long streams** (a watch, server-sent events: [`LongStream`]) would all last until the deadline. They are ended at
//! step 2, because then a client that reconnects reaches another instance. Upgraded connections (WebSocket) belong to their handler, which the
//! drain waits for: end them on [`Drain::begun`], with a close frame. At the deadline their reads and writes fail.
//!
//! **Limits on clients.** A request head may take [`head_timeout`](DrainOptions::head_timeout), and at most
//! [`max_connections`](DrainOptions::max_connections) are served at a time, so that half-sent heads do not use up the
//! memory of the process.
//!
//! # Defaults and reasons
//!
//! | option | default | because |
//! |---|---|---|
//! | [`grace`](DrainOptions::grace) | 30 s | the default of Kubernetes |
//! | [`propagation`](DrainOptions::propagation) | 5 s | endpoints reach kube-proxy and Envoy within one or two seconds, a slow one within five; a proxy that probes readiness needs `periodSeconds` × `failureThreshold` |
//! | [`hook_time`](DrainOptions::hook_time) | 3 s | sending flag metrics and leaving the fleet are one request each, with time limits of their own |
//! | [`margin`](DrainOptions::margin) | 1 s | to return from `main` before the kill |
//! | [`head_timeout`](DrainOptions::head_timeout) | 30 s | a head is a few packets; nginx gives it 60 s |
//! | [`half_closed_timeout`](DrainOptions::half_closed_timeout) | 2 s | most responses are ready by then, and a client that is gone keeps its handler for no longer |
//! | [`idle_timeout`](DrainOptions::idle_timeout) | 65 min | must be longer than a proxy keeps idle connections (Envoy: 1 h), or requests race with the close |
//! | [`max_connections`](DrainOptions::max_connections) | 10,000 | hyper buffers up to 400 KiB of a head, so this bounds a flood; a service with more WebSockets sets it higher |

mod app;
mod connection;
mod endpoint;
mod handle;
mod listen;
mod long;
mod metrics;
mod options;
mod refusal;
mod registry;
mod report;
mod request;
mod secret;
mod sequence;
mod serve;
mod stage;
mod state;
mod stream;

pub use app::App;
pub use handle::{Drain, WorkGuard};
pub use listen::Listen;
pub use long::LongStream;
pub use options::DrainOptions;
pub use report::{Cut, CutPhase, DrainReport, HookEnd, HookReport};
pub use secret::DrainSecret;

#[cfg(test)]
mod tests;
