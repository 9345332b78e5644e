//! Values that a mapping in Rust returns, on their way to the server.
//!
//! They travel as JSON, from which the server makes values of the columns' types. JSON has no `NaN`, no infinity, no bytes
//! and no difference between its own null and the one of SQL, and `serde_json` writes null for what it cannot express. So
//! the values are kept in a form of their own until the column's type is known.

use std::fmt::Write as _;

use serde_json::Value;

use super::column_type::{ColumnType, Element};

/// What a value serializes as.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Node {
    /// An `Option` that is `None`.
    None,
    /// `()` and the null of JSON.
    Null,
    Bool(bool),
    /// A `u8` that may be one of many bytes.
    Byte(u8),
    /// An integer in decimal.
    Integer(String),
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
    Sequence(Vec<Node>),
    Map(Vec<(String, Node)>),
}

/// Takes a column out of a map of columns.
pub(crate) fn take(columns: &mut Vec<(String, Node)>, name: &str) -> Option<Node> {
    let index = columns.iter().position(|(column, _)| column == name)?;
    Some(columns.swap_remove(index).1)
}

impl Node {
    /// The JSON from which the server makes a value of this type.
    pub(crate) fn carry(self, column: &ColumnType) -> Result<Value, String> {
        match self {
            Node::None => Ok(Value::Null),
            node if column.is_json() => {
                let mut json = String::new();
                node.write_json(&mut json)?;
                Ok(Value::String(json))
            }
            Node::Null => Ok(Value::Null),
            Node::Sequence(items) if column.is_array => items_of(items, column.element),
            // An array as Postgres writes it.
            Node::Text(text) => text_of(text),
            node if column.is_array => {
                Err(format!("{} is no array for a column of type {}", node.kind(), column.name))
            }
            node => node
                .element(column.element)
                .map_err(|kind| format!("{kind} cannot be stored in a column of type {}", column.name)),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Node::None | Node::Null => "a null",
            Node::Bool(_) => "a boolean",
            Node::Byte(_) | Node::Integer(_) | Node::Float(_) => "a number",
            Node::Text(_) => "a text",
            Node::Bytes(_) => "bytes",
            Node::Sequence(_) => "a list",
            Node::Map(_) => "a map",
        }
    }

    /// A value that is no array, or an array's element.
    fn element(self, element: Element) -> Result<Value, String> {
        match (self, element) {
            (Node::None, _) => Ok(Value::Null),
            (Node::Bytes(bytes), Element::Bytes) => Ok(hex(&bytes)),
            (Node::Sequence(items), Element::Bytes) => {
                bytes_of(&items).map(|bytes| hex(&bytes)).ok_or_else(|| "a list".to_owned())
            }
            (Node::Text(text), _) => text_of(text),
            (node @ (Node::Bool(_) | Node::Byte(_) | Node::Integer(_) | Node::Float(_)), Element::Bytes) => {
                Err(node.kind().to_owned())
            }
            (Node::Bool(value), _) => Ok(Value::Bool(value)),
            (Node::Byte(value), _) => Ok(Value::from(value)),
            (Node::Integer(digits), _) => Ok(integer(digits)),
            (Node::Float(value), _) => Ok(float(value)),
            // A field of a composite type.
            (Node::Null, _) => Ok(Value::Null),
            (Node::Sequence(items), Element::Composite) => items_of(items, element),
            (Node::Map(fields), Element::Composite) => {
                let field = |(name, node): (String, Node)| Ok((name, node.element(element)?));
                fields.into_iter().map(field).collect::<Result<_, String>>().map(Value::Object)
            }
            (node, _) => Err(node.kind().to_owned()),
        }
    }

    fn write_json(&self, json: &mut String) -> Result<(), String> {
        match self {
            Node::None | Node::Null => json.push_str("null"),
            Node::Bool(value) => _ = write!(json, "{value}"),
            Node::Byte(value) => _ = write!(json, "{value}"),
            Node::Integer(digits) => json.push_str(digits),
            Node::Float(value) if value.is_finite() => _ = write!(json, "{}", Value::from(*value)),
            Node::Float(value) => return Err(format!("{value} cannot be stored as JSON")),
            Node::Text(text) => write_text(text, json),
            Node::Bytes(_) => return Err("bytes cannot be stored as JSON".to_owned()),
            Node::Sequence(items) => {
                json.push('[');
                for (index, item) in items.iter().enumerate() {
                    json.push_str(if index == 0 { "" } else { "," });
                    item.write_json(json)?;
                }
                json.push(']');
            }
            Node::Map(fields) => {
                json.push('{');
                for (index, (name, value)) in fields.iter().enumerate() {
                    json.push_str(if index == 0 { "" } else { "," });
                    write_text(name, json);
                    json.push(':');
                    value.write_json(json)?;
                }
                json.push('}');
            }
        }
        Ok(())
    }
}

fn write_text(text: &str, json: &mut String) {
    _ = write!(json, "{}", Value::from(text));
}

fn text_of(text: String) -> Result<Value, String> {
    if text.contains('\0') {
        Err("a text with the character U+0000".to_owned())
    } else {
        Ok(Value::String(text))
    }
}

fn hex(bytes: &[u8]) -> Value {
    let mut text = String::from("\\x");
    bytes.iter().for_each(|byte| _ = write!(text, "{byte:02x}"));
    Value::String(text)
}

/// The bytes of a sequence of `u8`.
fn bytes_of(items: &[Node]) -> Option<Vec<u8>> {
    items.iter().map(|item| if let Node::Byte(byte) = item { Some(*byte) } else { None }).collect()
}

fn integer(digits: String) -> Value {
    match (digits.parse::<i64>(), digits.parse::<u64>()) {
        (Ok(value), _) => Value::from(value),
        (_, Ok(value)) => Value::from(value),
        _ => Value::String(digits),
    }
}

/// A text where JSON, or the server's reading of it as `numeric`, would lose something: `NaN`, the infinities, `-0`.
fn float(value: f64) -> Value {
    if value.is_finite() && !(value == 0.0 && value.is_sign_negative()) {
        return Value::from(value);
    }
    let text = if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        format!("{}Infinity", if value < 0.0 { "-" } else { "" })
    } else {
        "-0".to_owned()
    };
    Value::String(text)
}

fn items_of(items: Vec<Node>, element: Element) -> Result<Value, String> {
    let item = |item: Node| match (item, element) {
        // A null of JSON would arrive as an SQL NULL.
        (Node::Null, Element::Json) => Err("a null of JSON inside an array cannot be stored".to_owned()),
        (Node::None, _) => Ok(Value::Null),
        (node, Element::Json) => {
            let mut json = String::new();
            node.write_json(&mut json)?;
            serde_json::from_str(&json).map_err(|error| error.to_string())
        }
        (Node::Sequence(items), Element::Bytes) => match bytes_of(&items) {
            Some(bytes) => Ok(hex(&bytes)),
            None => items_of(items, element),
        },
        (Node::Sequence(items), _) => items_of(items, element),
        (node, _) => {
            node.element(element).map_err(|kind| format!("{kind} cannot be stored in an array of that type"))
        }
    };
    items.into_iter().map(item).collect::<Result<_, _>>().map(Value::Array)
}
