//! What a mapping in Rust returns.

use serde::ser::{
    Error as _, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant,
};
use serde::{Serialize, Serializer};

use super::value::Node;

type Error = serde::de::value::Error;

/// A value that a mapping in Rust returns: a column's value, or for several columns a struct or map of them.
///
/// Bytes for a `bytea` column may be a `Vec<u8>`. `None` is an SQL NULL; in a `json` or `jsonb` column
/// `serde_json::Value::Null` is the null of JSON. A value that the column's type cannot hold, such as `NaN` in `jsonb`
/// or a list in `text`, is an error of its row. A `numeric` keeps all its digits if the value is a string.
///
/// ```
/// use cutover::migration::MappedValue;
///
/// # fn f() -> Result<(), String> {
/// let value = MappedValue::new(&Some("paid"))?;
/// # let _ = value; Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct MappedValue(pub(crate) Node);

impl MappedValue {
    /// Keeps what `value` serializes as.
    ///
    /// # Errors
    ///
    /// The error that `value` itself reports.
    pub fn new<T: Serialize + ?Sized>(value: &T) -> Result<Self, String> {
        value.serialize(ValueSerializer).map(Self).map_err(|error| error.to_string())
    }
}

struct ValueSerializer;

/// A list under construction, inside of an enum's variant if there is a name.
struct List(Option<&'static str>, Vec<Node>);

/// A map under construction, inside of an enum's variant if there is a name.
struct Fields(Option<&'static str>, Vec<(String, Node)>);

fn in_variant(variant: Option<&'static str>, node: Node) -> Node {
    match variant {
        Some(name) => Node::Map(vec![(name.to_owned(), node)]),
        None => node,
    }
}

macro_rules! integers {
    ($($method:ident: $type:ty),*) => {
        $(fn $method(self, value: $type) -> Result<Node, Error> {
            Ok(Node::Integer(value.to_string()))
        })*
    };
}

impl Serializer for ValueSerializer {
    type Ok = Node;
    type Error = Error;
    type SerializeSeq = List;
    type SerializeTuple = List;
    type SerializeTupleStruct = List;
    type SerializeTupleVariant = List;
    type SerializeMap = Fields;
    type SerializeStruct = Fields;
    type SerializeStructVariant = Fields;

    integers!(
        serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64, serialize_i128: i128,
        serialize_u16: u16, serialize_u32: u32, serialize_u64: u64, serialize_u128: u128
    );

    fn serialize_bool(self, value: bool) -> Result<Node, Error> {
        Ok(Node::Bool(value))
    }

    fn serialize_u8(self, value: u8) -> Result<Node, Error> {
        Ok(Node::Byte(value))
    }

    fn serialize_f32(self, value: f32) -> Result<Node, Error> {
        Ok(Node::Float(f64::from(value)))
    }

    fn serialize_f64(self, value: f64) -> Result<Node, Error> {
        Ok(Node::Float(value))
    }

    fn serialize_char(self, value: char) -> Result<Node, Error> {
        Ok(Node::Text(value.to_string()))
    }

    fn serialize_str(self, value: &str) -> Result<Node, Error> {
        Ok(Node::Text(value.to_owned()))
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<Node, Error> {
        Ok(Node::Bytes(value.to_vec()))
    }

    fn serialize_none(self) -> Result<Node, Error> {
        Ok(Node::None)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<Node, Error> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<Node, Error> {
        Ok(Node::Null)
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<Node, Error> {
        Ok(Node::Null)
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<Node, Error> {
        Ok(Node::Text(variant.to_owned()))
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<Node, Error> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<Node, Error> {
        Ok(in_variant(Some(variant), value.serialize(self)?))
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<List, Error> {
        Ok(List(None, Vec::new()))
    }

    fn serialize_tuple(self, _: usize) -> Result<List, Error> {
        self.serialize_seq(None)
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<List, Error> {
        self.serialize_seq(None)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<List, Error> {
        Ok(List(Some(variant), Vec::new()))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Fields, Error> {
        Ok(Fields(None, Vec::new()))
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Fields, Error> {
        self.serialize_map(None)
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Fields, Error> {
        Ok(Fields(Some(variant), Vec::new()))
    }
}

macro_rules! list {
    ($($trait:ident::$method:ident),*) => {
        $(impl $trait for List {
            type Ok = Node;
            type Error = Error;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
                self.1.push(value.serialize(ValueSerializer)?);
                Ok(())
            }

            fn end(self) -> Result<Node, Error> {
                Ok(in_variant(self.0, Node::Sequence(self.1)))
            }
        })*
    };
}

list!(
    SerializeSeq::serialize_element,
    SerializeTuple::serialize_element,
    SerializeTupleStruct::serialize_field,
    SerializeTupleVariant::serialize_field
);

macro_rules! fields {
    ($($trait:ident),*) => {
        $(impl $trait for Fields {
            type Ok = Node;
            type Error = Error;

            fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), Error> {
                self.1.push((name.to_owned(), value.serialize(ValueSerializer)?));
                Ok(())
            }

            fn end(self) -> Result<Node, Error> {
                Ok(in_variant(self.0, Node::Map(self.1)))
            }
        })*
    };
}

fields!(SerializeStruct, SerializeStructVariant);

impl SerializeMap for Fields {
    type Ok = Node;
    type Error = Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Error> {
        let name = match key.serialize(ValueSerializer)? {
            Node::Text(name) | Node::Integer(name) => name,
            Node::Byte(number) => number.to_string(),
            Node::Bool(value) => value.to_string(),
            _ => return Err(Error::custom("the key of a map has to be a text, a number or a boolean")),
        };
        self.1.push((name, Node::None));
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        let node = value.serialize(ValueSerializer)?;
        if let Some((_, value)) = self.1.last_mut() {
            *value = node;
        }
        Ok(())
    }

    fn end(self) -> Result<Node, Error> {
        Ok(in_variant(self.0, Node::Map(self.1)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::migration::batch::column_type::{ColumnType, Element};

    fn column(name: &str, is_array: bool, element: Element) -> ColumnType {
        ColumnType { is_array, element, ..ColumnType::described(name) }
    }

    fn carried<T: Serialize>(value: T, column: &ColumnType) -> Result<Value, String> {
        MappedValue::new(&value)?.0.carry(column)
    }

    #[test]
    fn floats_without_a_json_number_are_carried_as_text() {
        let float8 = column("double precision", false, Element::Scalar);
        for (value, expected) in
            [(f64::NAN, "NaN"), (f64::INFINITY, "Infinity"), (f64::NEG_INFINITY, "-Infinity"), (-0.0, "-0")]
        {
            assert_eq!(carried(value, &float8), Ok(json!(expected)));
        }
        assert_eq!(carried(1.5, &float8), Ok(json!(1.5)));
        let jsonb = column("jsonb", false, Element::Json);
        assert!(carried(json!({"a": 1.5}), &jsonb).is_ok());
        assert!(carried(vec![f64::NAN], &jsonb).is_err());
    }

    #[test]
    fn bytes_are_carried_to_bytea_only() {
        let bytea = column("bytea", false, Element::Bytes);
        assert_eq!(carried(vec![1_u8, 255], &bytea), Ok(json!("\\x01ff")));
        assert_eq!(carried(Vec::<u8>::new(), &bytea), Ok(json!("\\x")));
        assert!(carried(vec![1_u32, 2], &bytea).is_err() && carried(7, &bytea).is_err());
        let texts = column("text", false, Element::Scalar);
        assert!(carried(vec![1_u8], &texts).is_err());
        let many = column("bytea[]", true, Element::Bytes);
        assert_eq!(carried(vec![vec![1_u8], vec![]], &many), Ok(json!(["\\x01", "\\x"])));
        let numbers = column("smallint[]", true, Element::Scalar);
        assert_eq!(carried(vec![1_u8, 2], &numbers), Ok(json!([1, 2])));
    }

    #[test]
    fn a_null_of_json_is_no_sql_null() {
        let jsonb = column("jsonb", false, Element::Json);
        assert_eq!(carried(json!(null), &jsonb), Ok(json!("null")));
        assert_eq!(carried(None::<Value>, &jsonb), Ok(json!(null)));
        assert_eq!(carried(json!("a\"b"), &jsonb), Ok(json!("\"a\\\"b\"")));
        let many = column("jsonb[]", true, Element::Json);
        assert_eq!(carried(vec![Some(json!(1)), None], &many), Ok(json!([1, null])));
        assert!(carried(vec![json!(null)], &many).is_err());
    }

    #[test]
    fn what_a_type_cannot_hold_is_refused() {
        let text = column("text", false, Element::Scalar);
        assert_eq!(carried(None::<i32>, &text), Ok(json!(null)));
        assert_eq!(carried("a", &text), Ok(json!("a")));
        assert!(carried("a\0b", &text).is_err() && carried(json!({"a": 1}), &text).is_err());
        let array = column("text[]", true, Element::Scalar);
        assert!(carried(7, &array).is_err());
        assert_eq!(carried(vec![vec!["a"], vec!["b"]], &array), Ok(json!([["a"], ["b"]])));
        let huge = column("numeric", false, Element::Scalar);
        assert_eq!(carried(u128::MAX, &huge), Ok(json!(u128::MAX.to_string())));
        let pair = column("pair", false, Element::Composite);
        assert_eq!(carried(json!({"a": 1, "b": ["x"]}), &pair), Ok(json!({"a": 1, "b": ["x"]})));
    }
}
