use ::http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, header::CONTENT_TYPE};

use super::grpc_status::{UNKNOWN, status_of_code};
use super::grpc_web::WebStatus;

static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// How a gRPC message is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Grpc,
    /// The trailers are a frame of the body.
    Web,
    /// The same in base64.
    WebText,
}

impl Kind {
    fn of(headers: &HeaderMap) -> Option<Self> {
        let rest = headers.get(CONTENT_TYPE)?.as_bytes().strip_prefix(b"application/grpc")?;
        let (kind, rest) = if let Some(rest) = rest.strip_prefix(b"-web-text") {
            (Self::WebText, rest)
        } else if let Some(rest) = rest.strip_prefix(b"-web") {
            (Self::Web, rest)
        } else {
            (Self::Grpc, rest)
        };
        matches!(rest.first(), None | Some(b'+' | b';')).then_some(kind)
    }
}

/// Whether the request's path is the name of a method: `/package.Service/Method`.
pub(super) fn is_call<B>(request: &Request<B>) -> bool {
    *request.method() == Method::POST && Kind::of(request.headers()).is_some()
}

/// Where the status of a response is found.
#[derive(Debug)]
pub(super) enum Status {
    Known(u16),
    /// In the trailers.
    Trailers,
    /// In a frame of the body.
    Web(Box<WebStatus>),
}

impl Status {
    pub(super) fn of_head<B>(head: &Response<B>) -> Self {
        let Some(kind) = Kind::of(head.headers()).filter(|_| head.status() == StatusCode::OK) else {
            return Self::Known(head.status().as_u16());
        };
        // A response without a message has its status in the head.
        match (status_of(head.headers()), kind) {
            (Some(status), _) => Self::Known(status),
            (None, Kind::Grpc) => Self::Trailers,
            (None, kind) => Self::Web(Box::new(WebStatus::new(kind == Kind::WebText))),
        }
    }

    /// What the response counts as if its body ends now, with these trailers.
    pub(super) fn at_end(&self, trailers: Option<&HeaderMap>) -> u16 {
        let found = match self {
            Self::Known(status) => Some(*status),
            Self::Trailers => trailers.and_then(status_of),
            Self::Web(web) => web.status(),
        };
        found.unwrap_or(UNKNOWN)
    }
}

fn status_of(headers: &HeaderMap) -> Option<u16> {
    headers.get(&GRPC_STATUS).map(|code| status_of_code(code.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(kind: &'static str, code: Option<&'static str>) -> Status {
        let response = ::http::Response::builder().header(CONTENT_TYPE, kind);
        let response = match code {
            Some(code) => response.header(&GRPC_STATUS, code),
            None => response,
        };
        Status::of_head(&response.body(()).unwrap())
    }

    #[test]
    fn a_call_counts_as_the_http_status_of_the_same_meaning() {
        for (code, status) in [
            ("0", 200),
            ("1", 499),
            ("5", 404),
            ("12", 501),
            ("13", 500),
            ("14", 503),
            ("17", 500),
            ("-1", 500),
            ("0 ", 500),
        ] {
            for kind in [
                "application/grpc",
                "application/grpc+proto",
                "application/grpc; charset=utf-8",
                "application/grpc-web",
                "application/grpc-web+proto",
                "application/grpc-web-text+proto",
            ] {
                assert_eq!(head(kind, Some(code)).at_end(None), status, "{kind} {code:?}");
            }
            assert_eq!(head("text/plain", Some(code)).at_end(None), 200, "{code:?}");
            assert_eq!(head("application/grpcish", Some(code)).at_end(None), 200, "{code:?}");
        }
    }

    #[test]
    fn a_call_without_a_status_failed() {
        for kind in ["application/grpc", "application/grpc-web", "application/grpc-web-text"] {
            assert_eq!(head(kind, None).at_end(None), UNKNOWN, "{kind}");
        }
    }
}
