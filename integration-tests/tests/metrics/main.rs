//! The metrics room against real sockets, a real Prometheus, and clients that mean no good.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod hostile;
mod promql;
mod routes;
mod sockets;
