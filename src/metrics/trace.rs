use std::{fmt, num::NonZeroU128};

use ::http::{HeaderMap, HeaderName};

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Where the flags are.
const FLAGS: std::ops::Range<usize> = 53..55;

/// The trace that a request belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TraceId(NonZeroU128);

impl TraceId {
    /// From a `traceparent` header with the `sampled` flag: other traces are not stored, so an exemplar could not lead to
    /// them. Format: W3C Trace Context, section 3.2.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(&TRACEPARENT)?.as_bytes();
        // First, because most traces are not sampled. Later versions have the flags in the same place.
        if hex(value.get(FLAGS)?)? & 1 == 0 {
            return None;
        }
        let (version, rest) = value.split_first_chunk::<2>()?;
        let (trace, rest) = rest.strip_prefix(b"-")?.split_first_chunk::<32>()?;
        let (parent, rest) = rest.strip_prefix(b"-")?.split_first_chunk::<16>()?;
        let (_, rest) = rest.strip_prefix(b"-")?.split_first_chunk::<2>()?;
        // A later version may append fields; version ff is forbidden, and 00 has no more fields.
        let version = hex(version)?;
        let whole = rest.is_empty() || (version != 0 && rest.starts_with(b"-"));
        let (high, low) = trace.split_at(16);
        let trace = NonZeroU128::new(u128::from(hex(high)?) << 64 | u128::from(hex(low)?))?;
        let valid = whole && version != 0xff && hex(parent)? != 0;
        valid.then_some(Self(trace))
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// At most 16 digits, in lower case only, as in the format.
fn hex(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |number, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: &str) -> Option<String> {
        let headers = HeaderMap::from_iter([(TRACEPARENT.clone(), value.parse().unwrap())]);
        TraceId::of(&headers).map(|trace| trace.to_string())
    }

    #[test]
    fn only_valid_headers_of_sampled_traces_are_accepted() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let parent = "b7ad6b7169203331";
        assert_eq!(of(&format!("00-{trace}-{parent}-01")).as_deref(), Some(trace));
        assert_eq!(of(&format!("01-{trace}-{parent}-03-later")).as_deref(), Some(trace));
        let zero = "0".repeat(32);
        for wrong in [
            format!("00-{trace}-{parent}-00"),
            format!("00-{trace}-{parent}-01-more"),
            format!("ff-{trace}-{parent}-01"),
            format!("00-{}-{parent}-01", trace.to_uppercase()),
            format!("00-{zero}-{parent}-01"),
            format!("00-{trace}-{}-01", &zero[..16]),
            format!("00-{trace}-{parent}"),
            format!("00{trace}-{parent}-01"),
            "x".repeat(10_000),
            String::new(),
        ] {
            assert_eq!(of(&wrong), None, "{wrong}");
        }
    }
}
