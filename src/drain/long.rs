use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Response,
    header::{CONTENT_TYPE, HeaderName},
};
use http_body::{Body, Frame};

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
    /// The trailers are the last frame of the body (PROTOCOL-WEB of gRPC).
    GrpcWeb,
    /// That frame in base64.
    GrpcWebText,
}

/// The frame of gRPC-web with the trailers: a flag, the length, and header lines.
const WEB_TRAILERS: &[u8] = b"\x80\0\0\0\x27grpc-status:14\r\ngrpc-message:draining\r\n";
/// The same in base64.
const WEB_TEXT_TRAILERS: &[u8] = b"gAAAACdncnBjLXN0YXR1czoxNA0KZ3JwYy1tZXNzYWdlOmRyYWluaW5nDQo=";

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
        // The longest first, because each begins like the next.
        let types = [
            ("application/grpc-web-text", Self::GrpcWebText),
            ("application/grpc-web", Self::GrpcWeb),
            ("application/grpc", Self::Grpc),
        ];
        Some(types.into_iter().find(|(prefix, _)| is_type(prefix)).map_or(Self::Plain, |(_, ending)| ending))
    }

    /// The last frame of the body, if the protocol has one.
    pub(super) fn frame(self) -> Option<Frame<Bytes>> {
        match self {
            Self::Plain => None,
            Self::Grpc => Some(Frame::trailers(HeaderMap::from_iter([
                (HeaderName::from_static("grpc-status"), HeaderValue::from_static("14")),
                (HeaderName::from_static("grpc-message"), HeaderValue::from_static("draining")),
            ]))),
            Self::GrpcWeb => Some(Frame::data(Bytes::from_static(WEB_TRAILERS))),
            Self::GrpcWebText => Some(Frame::data(Bytes::from_static(WEB_TEXT_TRAILERS))),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body as AnyBody;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    fn last_frame(content_type: &str) -> Bytes {
        let body = AnyBody::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());
        let mut response = Response::builder().header(CONTENT_TYPE, content_type).body(body).expect("valid");
        response.extensions_mut().insert(LongStream);
        let ending = Ending::of(LongPath::of("/"), &[], &response).expect("a long stream");
        ending.frame().expect("a frame").into_data().expect("data")
    }

    #[test]
    fn a_stream_of_grpc_web_ends_with_the_frame_of_its_trailers() {
        let frame = last_frame("application/grpc-web+proto");
        let (flag, rest) = frame.split_first().expect("a flag");
        let (length, lines) = rest.split_first_chunk::<4>().expect("a length");
        assert_eq!((*flag, u32::from_be_bytes(*length) as usize), (0x80, lines.len()));
        assert!(lines.starts_with(b"grpc-status:14\r\n"));
        let text = last_frame("application/grpc-web-text+proto");
        assert_eq!(text, STANDARD.encode(&frame));
    }
}
