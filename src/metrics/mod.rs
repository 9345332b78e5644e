//! What a canary judge reads: request counts and durations, each request counted once.
//!
//! **Hazard.** A layer that counts at the response head calls a stream that broke half way
//! a success, never sees a handler that panicked or a client that hung up, and leaves its
//! in-flight gauge above zero for ever; a layer that labels by path explodes. A judge that
//! reads those numbers promotes a broken build. Here a request is classified at the end of
//! its response body, under the route that matched, and a series starts at zero, so that
//! an empty result can't pass for a healthy one.
//!
//! **Differences from other metrics layers.** Duration is the time to the end of the body,
//! not to the head. Every ending counts, with these values in the usual labels:
//!
//! | ending | `status` | also counted in `http_requests_aborted_total{reason}` |
//! |---|---|---|
//! | body sent to its end | the response's | – |
//! | inner service answered with an error | `500` | `service_error` |
//! | handler or body panicked | `500` | `panic` |
//! | body failed half way | `500` | `body_error` |
//! | dropped before the head or in mid-body: client gone, or cut by a drain | `499` | `dropped` |
//!
//! A gRPC call has `200` on the wire whatever became of it. It counts as the HTTP status that means the same as its
//! `grpc-status`, wherever that is sent (`INTERNAL` and a call without a status `500`, `UNAVAILABLE` `503`,
//! `NOT_FOUND` `404`, …). gRPC-Web hides its trailers in the body and counts as what is on the wire.
//!
//! So `status=~"5.."` finds every failure that is the service's own, and nothing else.
//!
//! **At zero from the start** are `200`, `500` and `503` of every route and method that was
//! [declared](Metrics::declare) or has had a request, all reasons for an abort beside them, and the same of
//! `unmatched`. A series that appears together with its first step shows no step to `rate()`.
//!
//! **What grows.** Routes come from the router and from declarations, methods and reasons are fixed, statuses are those
//! that the service answers with. Nothing that a client sends makes a series: unmatched paths are one route,
//! unknown methods are one method.

mod body;
mod collector;
mod grpc;
mod grpc_web;
mod http;
mod labels;
mod layer;
mod nested;
mod openmetrics;
mod registry;
mod route;
mod series;
mod ticket;
mod trace;

pub use body::MetricsBody;
pub use layer::{MetricsLayer, MetricsService, ResponseFuture};
pub(crate) use nested::nested_prefix;
pub use prometheus;
pub use registry::Metrics;

#[cfg(test)]
mod tests;
