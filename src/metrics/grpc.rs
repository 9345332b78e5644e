use ::http::{
    HeaderMap, HeaderName, Method, Request, Response, StatusCode,
    header::{CONTENT_TYPE, HeaderValue},
};

static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// A gRPC call that ended without a status, or with one that is no number. Clients make the same of it.
pub(super) const UNKNOWN: u16 = 500;

fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    // Not `application/grpc-web`, whose trailers are inside of the body.
    kind.and_then(|kind| kind.strip_prefix(b"application/grpc"))
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// Whether the request's path is the name of a method: `/package.Service/Method`.
pub(super) fn is_call<B>(request: &Request<B>) -> bool {
    *request.method() == Method::POST && is_grpc(request.headers())
}

/// What a response counts as when its body has ended; `None` if the trailers will tell.
pub(super) fn status_of_head<B>(head: &Response<B>) -> Option<u16> {
    if head.status() != StatusCode::OK || !is_grpc(head.headers()) {
        return Some(head.status().as_u16());
    }
    status_of(head.headers())
}

/// The `grpc-status` of trailers, or of a head that has no trailers, as the HTTP status that means the same.
pub(super) fn status_of(headers: &HeaderMap) -> Option<u16> {
    let code = headers.get(&GRPC_STATUS)?.to_str().ok().and_then(|code| code.parse::<u8>().ok());
    // The mapping is that of google/rpc/code.proto; 499 is what it gives to CANCELLED, too.
    Some(match code {
        Some(0) => 200,
        Some(1) => 499,
        Some(3 | 9 | 11) => 400,
        Some(4) => 504,
        Some(5) => 404,
        Some(6 | 10) => 409,
        Some(7) => 403,
        Some(8) => 429,
        Some(12) => 501,
        Some(14) => 503,
        Some(16) => 401,
        // UNKNOWN, INTERNAL, DATA_LOSS, and what isn't a code.
        _ => UNKNOWN,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(kind: &'static str, code: Option<&'static str>) -> Option<u16> {
        let response = ::http::Response::builder().header(CONTENT_TYPE, kind);
        let response = match code {
            Some(code) => response.header(&GRPC_STATUS, code),
            None => response,
        };
        status_of_head(&response.body(()).unwrap())
    }

    #[test]
    fn a_call_counts_as_the_status_that_means_the_same() {
        for (code, status) in [
            (Some("0"), Some(200)),
            (Some("1"), Some(499)),
            (Some("5"), Some(404)),
            (Some("12"), Some(501)),
            (Some("13"), Some(500)),
            (Some("14"), Some(503)),
            (Some("17"), Some(500)),
            (Some("-1"), Some(500)),
            (Some("0 "), Some(500)),
            (None, None),
        ] {
            assert_eq!(head("application/grpc", code), status, "{code:?}");
            assert_eq!(head("application/grpc+proto", code), status, "{code:?}");
            assert_eq!(head("application/grpc; charset=utf-8", code), status, "{code:?}");
            assert_eq!(head("application/grpc-web+proto", code), Some(200), "{code:?}");
            assert_eq!(head("text/plain", code), Some(200), "{code:?}");
        }
    }
}
