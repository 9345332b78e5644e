//! The metrics with real sockets, a real Prometheus, and hostile clients.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod documented;
mod hostile;
mod promql;
mod routes;
mod sockets;
