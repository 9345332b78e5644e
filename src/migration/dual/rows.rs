use serde::Serialize;
use serde_json::Value;

/// The rows that a write is about, by their keys, so that a row whose new side could not be written can be found
/// again.
///
/// A key of several columns is a tuple of them, in the order of the key.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a, K: ?Sized> {
    keys: Option<&'a K>,
    are_many: bool,
}

impl<'a, K: Serialize + ?Sized> Rows<'a, K> {
    /// One row.
    #[inline]
    pub fn one(key: &'a K) -> Self {
        Self { keys: Some(key), are_many: false }
    }

    /// Several rows: a slice or a `Vec` of keys, or whatever else serialises as a sequence.
    #[inline]
    pub fn many(keys: &'a K) -> Self {
        Self { keys: Some(keys), are_many: true }
    }

    /// The keys as a JSON array; `None` where there are none to be had.
    pub(crate) fn to_json(&self) -> Option<Value> {
        let keys = serde_json::to_value(self.keys?).ok()?;
        match (self.are_many, keys) {
            (false, key) if !key.is_null() => Some(Value::Array(vec![key])),
            (true, Value::Array(keys)) if !keys.is_empty() && !keys.contains(&Value::Null) => {
                Some(Value::Array(keys))
            }
            _ => None,
        }
    }
}

impl Rows<'static, ()> {
    /// Rows that the database finds by a condition: a statement over whoever is in some state. Whatever the
    /// repositories are set to, a failure of either side then ends the transaction.
    #[inline]
    pub fn unknown() -> Self {
        Self { keys: None, are_many: false }
    }
}

/// What has a key: what an insert returns.
///
/// A key is its own. A row, or whatever else an insert gives back, says which one of its fields it is:
///
/// ```
/// use cutover::migration::Keyed;
///
/// struct Order {
///     id: i64,
///     customer: String,
/// }
///
/// impl Keyed<i64> for Order {
///     fn key(&self) -> i64 {
///         self.id
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "an insert has to return the key that the database made, and `{Self}` has no key of type `{K}`",
    label = "the other side would never learn the key",
    note = "return the key itself, or implement `cutover::migration::Keyed<{K}>` for `{Self}`"
)]
pub trait Keyed<K> {
    /// The key, as it is in the database.
    fn key(&self) -> K;
}

impl<K: Clone> Keyed<K> for K {
    fn key(&self) -> K {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_become_an_array_of_what_can_be_found_again() {
        assert_eq!(Rows::one(&7_i64).to_json(), Some(json!([7])));
        assert_eq!(Rows::one("a").to_json(), Some(json!(["a"])));
        assert_eq!(Rows::one(&(7, "a")).to_json(), Some(json!([[7, "a"]])));
        assert_eq!(Rows::many(&[1, 2]).to_json(), Some(json!([1, 2])));
        assert_eq!(Rows::many(&vec![(1, "a")]).to_json(), Some(json!([[1, "a"]])));
        // Nothing that could be found again.
        assert_eq!(Rows::many(&7).to_json(), None);
        assert_eq!(Rows::many(&[0_i64; 0]).to_json(), None);
        assert_eq!(Rows::one(&None::<i64>).to_json(), None);
        assert_eq!(Rows::unknown().to_json(), None);
    }
}
