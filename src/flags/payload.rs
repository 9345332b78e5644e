//! Payloads with structure.

use std::str::FromStr;

use serde::de::DeserializeOwned;

/// A value that is JSON in the flag's payload.
///
/// ```
/// use cutover::flags::{FixedFlag, Flag, Flags, Json, Subject};
///
/// #[derive(Clone, serde::Deserialize)]
/// struct Limits {
///     orders: u32,
/// }
///
/// const LIMITS: Flag<Json<Limits>> = Flag::new("limits", Json(Limits { orders: 10 }));
///
/// let flags = Flags::fixed([("limits", FixedFlag::payload(r#"{"orders": 20}"#))]);
/// assert_eq!(flags.value(&LIMITS, &Subject::new()).0.orders, 20);
/// // The default applies if the payload cannot be parsed, and `cutover_flag_defaults_total` counts it.
/// flags.set("limits", FixedFlag::payload(r#"{"orders": "many"}"#))?;
/// assert_eq!(flags.value(&LIMITS, &Subject::new()).0.orders, 10);
/// # Ok::<(), cutover::flags::FlagsError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned> FromStr for Json<T> {
    type Err = serde_json::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        serde_json::from_str(text).map(Self)
    }
}

/// Values that are separated by commas in the flag's payload. Spaces around a value are ignored, and there is no quoting.
/// An empty payload is an empty list.
///
/// ```
/// use cutover::flags::{Csv, FixedFlag, Flag, Flags, Subject};
///
/// const SHARDS: Flag<Csv<u16>> = Flag::new("shards", Csv(Vec::new()));
///
/// let flags = Flags::fixed([("shards", FixedFlag::payload("1, 2,7"))]);
/// assert_eq!(flags.value(&SHARDS, &Subject::new()).0, [1, 2, 7]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Csv<T>(pub Vec<T>);

impl<T: FromStr> FromStr for Csv<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let values = text.split(',').map(str::trim);
        let empty = text.trim().is_empty();
        values.filter(|_| !empty).map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_parsed_strictly() {
        let read = |text: &str| text.parse::<Csv<u8>>().map(|list| list.0);
        assert!(read("").unwrap().is_empty());
        assert_eq!(read(" 1,2 , 3").unwrap(), [1, 2, 3]);
        for bad in ["1,,2", "1,", "a", "256"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
