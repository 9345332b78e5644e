//! Pairs of column types whose mapping is written in Rust. The SQL of each pair is for the oracle alone.

use std::collections::BTreeMap;

use cutover::migration::{MapRows, MappedValue};
use serde::Serialize;
use serde_json::Value;
use sqlx::postgres::{PgRow, PgValueFormat};
use sqlx::{Decode, Postgres, Row as _, Type, ValueRef as _};

use crate::pairs::{
    BYTES_TO_HEX, FLAG_TO_TEXT, INTEGER_TO_BIGINT, Pair, TEXT_TO_INTEGER, TEXTS, TEXTS_TO_JSON, pair, partial,
};

/// Computes a value from a column of the row.
pub(crate) type MapColumn = fn(&PgRow, &str) -> Result<Option<Mapped>, String>;

#[derive(Debug, Clone, Copy)]
pub(crate) struct RustPair {
    pub(crate) pair: Pair,
    pub(crate) forward: MapColumn,
    /// `None`: the pair's SQL.
    pub(crate) backward: Option<MapColumn>,
}

/// What a mapping returns.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Mapped {
    Text(String),
    Integer(i64),
    Float(f64),
    Bytes(Vec<u8>),
    Texts(Vec<Option<String>>),
    Json(Value),
    Bool(bool),
}

const fn in_rust(pair: Pair, forward: MapColumn, backward: Option<MapColumn>) -> RustPair {
    RustPair { pair, forward, backward }
}

fn get<T: for<'r> Decode<'r, Postgres> + Type<Postgres>>(
    row: &PgRow,
    column: &str,
) -> Result<Option<T>, String> {
    row.try_get(column).map_err(|error| error.to_string())
}

fn mapped<T: for<'r> Decode<'r, Postgres> + Type<Postgres>>(
    row: &PgRow,
    column: &str,
    map: impl FnOnce(T) -> Result<Mapped, String>,
) -> Result<Option<Mapped>, String> {
    get(row, column)?.map(map).transpose()
}

/// A `jsonb`, whose binary form begins with its version.
fn json(row: &PgRow, column: &str) -> Result<Option<Value>, String> {
    let raw = row.try_get_raw(column).map_err(|error| error.to_string())?;
    if raw.is_null() {
        return Ok(None);
    }
    let skipped = usize::from(raw.format() == PgValueFormat::Binary);
    let bytes = raw.as_bytes().map_err(|error| error.to_string())?;
    // Not an `Option`, which would be `None` for the null of JSON.
    let value: Value = serde_json::from_slice(bytes.get(skipped..).unwrap_or_default())
        .map_err(|error| error.to_string())?;
    Ok(Some(value))
}

/// Fails like a mapping that unwraps, without a message of the panic.
fn panic_quietly() -> i64 {
    std::panic::resume_unwind(Box::new("no number".to_owned()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Result<Vec<u8>, String> {
    let byte = |at: usize| hex.get(at..at + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
    (0..hex.len()).step_by(2).map(|at| byte(at).ok_or_else(|| format!("not hexadecimal: {hex}"))).collect()
}

pub(crate) const RUST_PAIRS: &[RustPair] = &[
    in_rust(
        pair("text", "text", "lower(trim(old_c) collate \"C\")", "upper(new_c collate \"C\")", TEXTS),
        |row, old| {
            mapped(row, old, |text: String| Ok(Mapped::Text(text.trim_matches(' ').to_ascii_lowercase())))
        },
        Some(|row, new| mapped(row, new, |text: String| Ok(Mapped::Text(text.to_ascii_uppercase())))),
    ),
    in_rust(
        INTEGER_TO_BIGINT,
        |row, old| mapped(row, old, |number: i32| Ok(Mapped::Integer(number.into()))),
        Some(|row, new| {
            mapped(row, new, |number: i64| {
                i32::try_from(number).map(|number| Mapped::Integer(number.into())).map_err(|e| e.to_string())
            })
        }),
    ),
    // A panic is the error of its row.
    in_rust(
        partial(TEXT_TO_INTEGER, "'n/a'"),
        |row, old| {
            mapped(row, old, |text: String| {
                Ok(Mapped::Integer(text.trim().parse().unwrap_or_else(|_| panic_quietly())))
            })
        },
        Some(|row, new| mapped(row, new, |number: i32| Ok(Mapped::Text(number.to_string())))),
    ),
    in_rust(
        BYTES_TO_HEX,
        |row, old| mapped(row, old, |raw: Vec<u8>| Ok(Mapped::Text(hex(&raw)))),
        Some(|row, new| mapped(row, new, |text: String| bytes(&text).map(Mapped::Bytes))),
    ),
    in_rust(
        TEXTS_TO_JSON,
        |row, old| {
            mapped(row, old, |texts: Vec<Option<String>>| {
                serde_json::to_value(texts).map(Mapped::Json).map_err(|error| error.to_string())
            })
        },
        Some(|row, new| {
            let texts = json(row, new)?.map(serde_json::from_value).transpose();
            texts.map(|texts| texts.map(Mapped::Texts)).map_err(|error| error.to_string())
        }),
    ),
    // The null of JSON is no SQL null.
    in_rust(
        partial(
            pair(
                "text",
                "jsonb",
                "old_c::jsonb",
                "new_c::text",
                &["'{}'", "'[1]'", "null", "'\"a\"'", "'null'", "' true '"],
            ),
            "'{a'",
        ),
        |row, old| {
            mapped(row, old, |text: String| {
                serde_json::from_str(&text).map(Mapped::Json).map_err(|error| error.to_string())
            })
        },
        Some(|row, new| Ok(json(row, new)?.map(|json| Mapped::Text(json.to_string())))),
    ),
    // The way back in SQL.
    in_rust(
        partial(
            pair(
                "text",
                "double precision",
                "old_c::double precision",
                "new_c::text",
                &["'NaN'", "'-0'", "' 1.5 '", "'Infinity'", "null", "'1e-300'"],
            ),
            "'one'",
        ),
        |row, old| {
            mapped(row, old, |text: String| {
                text.trim().parse().map(Mapped::Float).map_err(|_| format!("no number: {text}"))
            })
        },
        None,
    ),
    // A null has an image of its own.
    in_rust(
        FLAG_TO_TEXT,
        |row, old| {
            let is = get::<bool>(row, old)? == Some(true);
            Ok(Some(Mapped::Text(if is { "yes" } else { "no" }.to_owned())))
        },
        Some(|row, new| mapped(row, new, |text: String| Ok(Mapped::Bool(text == "yes")))),
    ),
];

/// The mapping of a column.
pub(crate) fn of_column(from: &'static str, map: MapColumn) -> impl MapRows {
    move |rows: &[PgRow]| {
        let one = |row: &PgRow| map(row, from).and_then(|value| MappedValue::new(&value));
        rows.iter().map(one).collect::<Vec<_>>()
    }
}

/// The mapping of a row of a table.
pub(crate) fn of_row(from: &'static str, to: &'static str, map: MapColumn) -> impl MapRows {
    move |rows: &[PgRow]| {
        let one = |row: &PgRow| {
            let parent = get::<i32>(row, "parent")?.map(|parent| Mapped::Integer(parent.into()));
            let note = get(row, "note")?.map(Mapped::Text);
            MappedValue::new(&BTreeMap::from([("parent", parent), ("note", note), (to, map(row, from)?)]))
        };
        rows.iter().map(one).collect::<Vec<_>>()
    }
}
