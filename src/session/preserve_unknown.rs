//! A value that keeps its unknown fields.

use std::{
    collections::BTreeMap,
    ops::{Deref, DerefMut},
};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, Error as _},
    ser::Error as _,
};
use serde_json::{Map, Value};

/// A typed session value that keeps the fields that it does not know.
///
/// A newer build adds a field to a struct in the session. An older build that reads the struct and writes it back would
/// drop that field. Wrapped in `PreserveUnknown`, the struct keeps it. Wrap values from the first release on, because
/// the *older* build has to do it.
///
/// A field is unknown if `T` does not serialize it right after it was deserialized. So `T` can still remove entries of
/// its own maps and options. This works for nested objects at every depth, but not inside arrays, because their elements
/// have no identity.
///
/// ```
/// use cutover::session::PreserveUnknown;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Cart { items: u32 }
///
/// let stored = r#"{"items":1,"coupon":"SPRING"}"#;
/// let mut cart: PreserveUnknown<Cart> = serde_json::from_str(stored)?;
/// cart.items += 1;
/// assert_eq!(
///     serde_json::to_value(&cart)?,
///     serde_json::json!({"items": 2, "coupon": "SPRING"}),
/// );
/// # Ok::<(), serde_json::Error>(())
/// ```
///
/// Do not rename a field with serde's `alias` inside it: the old name would be kept beside the new one. Add the new
/// field, and write both while both builds run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PreserveUnknown<T> {
    value: T,
    unknown: Unknown,
}

impl<T> PreserveUnknown<T> {
    /// A new value without unknown fields.
    pub fn new(value: T) -> Self {
        Self { value, unknown: Unknown::default() }
    }

    /// The value without its unknown fields.
    pub fn into_inner(self) -> T {
        self.value
    }
}

impl<T> Deref for PreserveUnknown<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for PreserveUnknown<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<'de, T: DeserializeOwned + Serialize> Deserialize<'de> for PreserveUnknown<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let stored = Value::deserialize(deserializer)?;
        let value = T::deserialize(&stored).map_err(D::Error::custom)?;
        let known = serde_json::to_value(&value).map_err(D::Error::custom)?;
        let unknown = Unknown::beyond(stored, &known);
        Ok(Self { value, unknown })
    }
}

impl<T: Serialize> Serialize for PreserveUnknown<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut value = serde_json::to_value(&self.value).map_err(S::Error::custom)?;
        self.unknown.add_to(&mut value);
        value.serialize(serializer)
    }
}

/// Fields that the stored object has and the known one does not.
#[derive(Clone, Debug, Default, PartialEq)]
struct Unknown {
    fields: Map<String, Value>,
    /// The unknown fields of nested objects that both have.
    inside: BTreeMap<String, Unknown>,
}

impl Unknown {
    fn beyond(stored: Value, known: &Value) -> Self {
        let mut unknown = Self::default();
        let (Value::Object(stored), Value::Object(known)) = (stored, known) else {
            return unknown;
        };
        for (name, stored) in stored {
            match known.get(&name) {
                None => {
                    unknown.fields.insert(name, stored);
                }
                Some(known) => {
                    let inside = Self::beyond(stored, known);
                    if inside != Self::default() {
                        unknown.inside.insert(name, inside);
                    }
                }
            }
        }
        unknown
    }

    /// Skips nested objects that the value no longer has: a removed object stays removed.
    fn add_to(&self, value: &mut Value) {
        let Value::Object(value) = value else {
            return;
        };
        for (name, field) in &self.fields {
            if !value.contains_key(name) {
                value.insert(name.clone(), field.clone());
            }
        }
        for (name, inside) in &self.inside {
            if let Some(value) = value.get_mut(name) {
                inside.add_to(value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    struct Cart {
        owner: Owner,
        items: BTreeMap<String, Item>,
        #[serde(skip_serializing_if = "Option::is_none")]
        voucher: Option<String>,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    struct Owner {
        name: String,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    struct Item {
        count: u32,
    }

    #[test]
    fn unknown_fields_stay_and_known_ones_can_be_removed() {
        let mut cart: PreserveUnknown<Cart> = serde_json::from_value(json!({
            "owner": {"name": "a", "tier": "gold"},
            "items": {"x": {"count": 1, "note": "n"}, "y": {"count": 2, "note": "m"}},
            "voucher": "V",
            "coupon": {"code": "C"},
        }))
        .unwrap();
        cart.owner.name = "b".into();
        cart.items.remove("x");
        cart.items.get_mut("y").unwrap().count = 3;
        cart.voucher = None;
        assert_eq!(
            serde_json::to_value(&cart).unwrap(),
            json!({
                "owner": {"name": "b", "tier": "gold"},
                "items": {"y": {"count": 3, "note": "m"}},
                "coupon": {"code": "C"},
            })
        );
        assert_eq!(cart.into_inner().owner.name, "b");
    }

    #[test]
    fn a_value_that_is_not_an_object_is_unchanged() {
        let number: PreserveUnknown<u32> = serde_json::from_str("7").unwrap();
        assert_eq!(serde_json::to_string(&number).unwrap(), "7");
        assert_eq!(*PreserveUnknown::new(7), 7);
        assert!(serde_json::from_str::<PreserveUnknown<u32>>(r#""seven""#).is_err());
    }
}
