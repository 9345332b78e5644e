use serde::Serialize;
use serde_json::Value;

/// The keys of the rows that a write changes. They identify the rows to repair if the new side could not be written.
///
/// A key of several columns is a tuple of them, in the order of the table's key.
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

    /// Several rows: a slice or a `Vec` of keys, or anything else that serializes as a sequence.
    #[inline]
    pub fn many(keys: &'a K) -> Self {
        Self { keys: Some(keys), are_many: true }
    }

    /// The keys as a JSON array; `None` if they are unknown.
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
    /// Rows that the database finds by a condition, such as all orders in some state. A failure of either side then ends
    /// the transaction, with or without [`repair_later`](crate::migration::DualWrite::repair_later).
    #[inline]
    pub fn unknown() -> Self {
        Self { keys: None, are_many: false }
    }
}

/// The result of an insert, which has the key of the new row.
///
/// A key is its own result. A row, or any other result, returns the field that is the key:
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
    message = "an insert has to return the key of the new row, and `{Self}` has no key of type `{K}`",
    label = "the key for the other side is missing",
    note = "return the key itself, or implement `cutover::migration::Keyed<{K}>` for `{Self}`"
)]
pub trait Keyed<K> {
    /// The key as stored in the database.
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
    fn keys_become_a_json_array() {
        assert_eq!(Rows::one(&7_i64).to_json(), Some(json!([7])));
        assert_eq!(Rows::one("a").to_json(), Some(json!(["a"])));
        assert_eq!(Rows::one(&(7, "a")).to_json(), Some(json!([[7, "a"]])));
        assert_eq!(Rows::many(&[1, 2]).to_json(), Some(json!([1, 2])));
        assert_eq!(Rows::many(&vec![(1, "a")]).to_json(), Some(json!([[1, "a"]])));
        // None of these identifies a row.
        assert_eq!(Rows::many(&7).to_json(), None);
        assert_eq!(Rows::many(&[0_i64; 0]).to_json(), None);
        assert_eq!(Rows::one(&None::<i64>).to_json(), None);
        assert_eq!(Rows::unknown().to_json(), None);
    }
}
