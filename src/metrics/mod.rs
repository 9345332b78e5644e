//! The metrics that a canary judge reads: counts and durations of requests, each request counted once.
//!
//! **Hazard.** A layer that counts at the response head counts a stream that broke half way as a success. It never sees a
//! handler that panicked or a client that disconnected, and its in-flight gauge stays above zero. A layer that labels by path
//! creates a series for every path. A judge that reads such metrics promotes a broken build. Here a request is classified at
//! the end of its response body, under the route that matched, and a series starts at zero, so that an empty result is not
//! mistaken for a healthy one.
//!
//! **Differences from other metrics layers.** The duration is the time to the end of the body, not to the head. A body that is
//! complete when the server first asks for it ends with the head. Every ending is counted, with these values in the usual
//! labels:
//!
//! | ending | `status` | also counted in `http_requests_aborted_total{reason}` |
//! |---|---|---|
//! | body sent to its end | the response's | – |
//! | inner service returned an error | `500` | `service_error` |
//! | handler or body panicked | `500` | `panic` |
//! | body failed half way | `500` | `body_error` |
//! | dropped before the head or within the body: the client disconnected, or a drain cut it | `499` | `dropped` |
//!
//! A gRPC call has `200` on the wire even if it failed. It counts as the HTTP status that means the same as its
//! `grpc-status` (`INTERNAL` and a call without a status `500`, `UNAVAILABLE` `503`, `NOT_FOUND` `404`, …), wherever that is
//! sent: in the trailers, in the head, or, with gRPC-Web, in a frame of the body.
//!
//! So `status=~"5.."` selects exactly the failures of the service itself.
//!
//! **Series that exist from the start** are `200`, `500` and `503` of every route and method that was
//! [declared](Metrics::declare) or has had a request, and its series for every reason of an abort. The same series exist for
//! `unmatched`. `rate()` misses the first increase of a series that does not exist before it.
//!
//! **Cardinality.** Routes come from the router and from declarations, methods and reasons are fixed, and statuses are those
//! that the service returns. A client can't create a series: unmatched paths are one route, and unknown methods one method.

mod body;
mod bounds;
mod collector;
mod grpc;
mod grpc_status;
mod grpc_web;
mod http;
mod labels;
mod layer;
mod nested;
mod openmetrics;
mod process;
mod registry;
mod route;
mod series;
mod ticket;
mod trace;

pub use body::MetricsBody;
pub(crate) use bounds::Bounds;
pub use layer::{MetricsLayer, MetricsService, ResponseFuture};
pub(crate) use nested::nested_prefix;
pub use prometheus;
pub use registry::{Metrics, MetricsError};
pub(crate) use series::{Durations, Snapshot, shard_count, thread_number};

#[cfg(test)]
mod end_tests;
#[cfg(test)]
mod tests;
