use ::http::Method;

/// The route of requests that no route matched. The raw path never becomes a label.
pub(super) const UNMATCHED: &str = "unmatched";

/// The methods that have a label of their own, the most frequent first.
pub(super) const METHODS: [&str; 10] =
    ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "CONNECT", "TRACE", "other"];
const OTHER: u8 = 9;

/// Index into [`METHODS`]. A method that is not listed counts as `other`, so that a client can't add labels.
pub(super) fn method_index(method: &Method) -> u8 {
    match *method {
        Method::GET => 0,
        Method::POST => 1,
        Method::PUT => 2,
        Method::PATCH => 3,
        Method::DELETE => 4,
        Method::HEAD => 5,
        Method::OPTIONS => 6,
        Method::CONNECT => 7,
        Method::TRACE => 8,
        _ => OTHER,
    }
}

/// Why a response did not reach its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Abort {
    /// The future or the body was dropped: the client disconnected.
    Dropped,
    Panic,
    BodyError,
    ServiceError,
}

impl Abort {
    pub(super) const ALL: [Self; 4] = [Self::Dropped, Self::Panic, Self::BodyError, Self::ServiceError];

    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Dropped => "dropped",
            Self::Panic => "panic",
            Self::BodyError => "body_error",
            Self::ServiceError => "service_error",
        }
    }

    /// 499 is what proxies log for a client that disconnected; it is not a failure of the service.
    pub(super) fn status(self) -> u16 {
        match self {
            Self::Dropped => 499,
            Self::Panic | Self::BodyError | Self::ServiceError => 500,
        }
    }
}
