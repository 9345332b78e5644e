use http::{
    HeaderMap, HeaderValue, Response,
    header::{CONTENT_TYPE, HeaderName},
};
use http_body::Body;

/// Marks a response that does not end by itself (a watch, a feed). Put it into the response's extensions. Responses of a
/// type in [`DrainOptions::long_types`](super::DrainOptions::long_types) and watches of gRPC's health protocol need no mark.
///
/// A drain does not wait for them until the deadline. It ends the body when propagation has passed, because a client that
/// reconnects then reaches another instance. gRPC gets the status `UNAVAILABLE`, everything else a regular end.
///
/// ```
/// use axum::response::{IntoResponse, Response};
/// use cutover::drain::LongStream;
///
/// fn feed(body: axum::body::Body) -> Response {
///     let mut response = body.into_response();
///     response.extensions_mut().insert(LongStream);
///     response
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LongStream;

/// Whether the path alone shows a long stream: the watch of gRPC's health protocol.
#[derive(Debug, Clone, Copy)]
pub(super) struct LongPath(bool);

impl LongPath {
    pub(super) fn of(path: &str) -> Self {
        Self(path == "/grpc.health.v1.Health/Watch")
    }
}

/// How a long stream is ended.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ending {
    Plain,
    Grpc,
}

impl Ending {
    /// `None` for a response that the drain waits for, such as one with a known length.
    pub(super) fn of<B: Body>(path: LongPath, long_types: &[String], response: &Response<B>) -> Option<Self> {
        let is_type = |prefix: &str| {
            let value = response.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes);
            let start = value.and_then(|value| value.get(..prefix.len()));
            start.is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
        };
        let marked = response.extensions().get::<LongStream>().is_some();
        let long = marked || path.0 || long_types.iter().any(|long_type| is_type(long_type));
        if !long || response.body().size_hint().exact().is_some() {
            return None;
        }
        Some(if is_type("application/grpc") { Self::Grpc } else { Self::Plain })
    }

    pub(super) fn trailers(self) -> Option<HeaderMap> {
        match self {
            Self::Plain => None,
            Self::Grpc => Some(HeaderMap::from_iter([
                (HeaderName::from_static("grpc-status"), HeaderValue::from_static("14")),
                (HeaderName::from_static("grpc-message"), HeaderValue::from_static("draining")),
            ])),
        }
    }
}
