/// The status of a call that ended without a `grpc-status`, or with one that is not a number. Clients treat it the same.
pub(super) const UNKNOWN: u16 = 500;

/// A `grpc-status` as the HTTP status that means the same.
pub(super) fn status_of_code(code: &[u8]) -> u16 {
    let code = std::str::from_utf8(code).ok().and_then(|code| code.parse::<u8>().ok());
    // The mapping is that of google/rpc/code.proto, which also maps CANCELLED to 499.
    match code {
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
        // UNKNOWN, INTERNAL, DATA_LOSS, and what is not a code.
        _ => UNKNOWN,
    }
}
