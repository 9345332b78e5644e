//! How the columns of one side are computed from a row of the other: by SQL expressions, or in Rust.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};
use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row};

use super::column_type::ColumnType;
use super::keyset::Keyset;
use super::mapped_value::MappedValue;
use super::value::{Node, take};
use crate::ledger::jobs::KeyText;
use crate::migration::catalog::unquote;

/// The problem of a `backward` in Rust whose `forward` is SQL.
pub(crate) const NEEDS_FORWARD_ROWS: &str = "needs `forward_rows`: scans apply `forward` to the result of `backward`, so \
     both have to be SQL, or `forward` has to be Rust";

/// Maps rows of one side to values of the other in Rust, for mappings that SQL cannot express.
///
/// A closure `Fn(&[PgRow]) -> Vec<Result<MappedValue, String>>` is one, for code that handles many rows at once.
/// [`map_each`] makes one from a closure over a single row.
///
/// A mapping that panics sets aside the row that it panicked on, unless the program is built with `panic = "abort"`.
pub trait MapRows: Send + Sync + 'static {
    /// One result per row, in their order: for a column its value, for a table a struct or map of the other table's
    /// columns. An error sets its row aside.
    ///
    /// The result must depend on nothing but the row. The call runs inside the transaction of a batch with the rows
    /// locked, so it has to be fast. `rows` have at most 8 MB, unless a single row has more.
    fn map(&self, rows: &[PgRow]) -> Vec<Result<MappedValue, String>>;
}

impl<F> MapRows for F
where
    F: Fn(&[PgRow]) -> Vec<Result<MappedValue, String>> + Send + Sync + 'static,
{
    fn map(&self, rows: &[PgRow]) -> Vec<Result<MappedValue, String>> {
        self(rows)
    }
}

/// A mapping of one row at a time, from what `sqlx` makes of the row to what `serde` makes of the result. See
/// [`MappedValue`] for the values that it can return.
///
/// ```
/// use cutover::migration::{map_each, MapRows};
///
/// #[derive(sqlx::FromRow)]
/// struct Old {
///     old_status: Option<String>,
/// }
///
/// let mapping = map_each(|row: Old| match row.old_status.as_deref().map(str::trim) {
///     Some("") => Err("an empty status"),
///     status => Ok(status.map(str::to_lowercase)),
/// });
/// # fn takes(_: impl MapRows) {}
/// # takes(mapping);
/// ```
pub fn map_each<Old, New, E, F>(map: F) -> impl MapRows
where
    Old: for<'r> FromRow<'r, PgRow>,
    New: Serialize,
    E: fmt::Display,
    F: Fn(Old) -> Result<New, E> + Send + Sync + 'static,
{
    move |rows: &[PgRow]| {
        let map_one = |row| {
            let old = Old::from_row(row).map_err(|error| error.to_string())?;
            let new = map(old).map_err(|error| error.to_string())?;
            MappedValue::new(&new)
        };
        rows.iter().map(map_one).collect()
    }
}

/// How the columns of one side are computed from a row of the other.
#[derive(Debug, Clone)]
pub(crate) struct Mapping {
    /// Quoted.
    pub(crate) columns: Vec<String>,
    pub(crate) code: MappingCode,
    /// Whether a mapping in Rust returns a struct or map of the columns, or the value of the only column.
    pub(crate) is_object: bool,
}

#[derive(Clone)]
pub(crate) enum MappingCode {
    /// One expression per column.
    Sql(Vec<String>),
    Rust(Arc<dyn MapRows>),
}

impl fmt::Debug for MappingCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MappingCode::Sql(expressions) => f.debug_tuple("Sql").field(expressions).finish(),
            MappingCode::Rust(_) => f.write_str("Rust"),
        }
    }
}

/// The keys of rows whose mapping failed, each with its error.
pub(crate) type Failures = Vec<(KeyText, String)>;

impl Mapping {
    pub(crate) fn is_rust(&self) -> bool {
        matches!(self.code, MappingCode::Rust(_))
    }

    /// Maps rows that carry their key, if this is a mapping in Rust. Returns JSON for `jsonb_to_recordset`, with the
    /// columns named by `letter`, and the rows that failed.
    pub(crate) fn run(
        &self,
        key: &Keyset,
        rows: &[PgRow],
        letter: char,
        types: &[ColumnType],
    ) -> Result<(String, Failures), sqlx::Error> {
        let results = match &self.code {
            MappingCode::Rust(mapping) => map_without_panics(&**mapping, rows),
            MappingCode::Sql(_) => Vec::new(),
        };
        let (mut mapped, mut failed) = (Vec::new(), Vec::new());
        let missing =
            std::iter::repeat_with(|| Err("the mapping returned no result for this row".to_owned()));
        for (row, result) in rows.iter().zip(results.into_iter().chain(missing)) {
            let key_values: KeyText = row.try_get("cutover_key")?;
            match result.and_then(|value| self.values(value.0, letter, types)) {
                Ok(mut values) => {
                    values
                        .extend(key.plain_names().into_iter().zip(key_values.into_iter().map(Value::String)));
                    mapped.push(Value::Object(values));
                }
                Err(error) => failed.push((key_values, error)),
            }
        }
        Ok((Value::Array(mapped).to_string(), failed))
    }

    /// The values of the columns, each under the name that the statements use.
    fn values(&self, value: Node, letter: char, types: &[ColumnType]) -> Result<Map<String, Value>, String> {
        let mut fields = match (value, &*self.columns) {
            (value, [column]) if !self.is_object => vec![(unquote(column), value)],
            (Node::Map(fields), _) => fields,
            _ => return Err("the mapping has to return a struct or a map with the columns' names".to_owned()),
        };
        let mut values = Map::new();
        for ((number, column), column_type) in self.columns.iter().enumerate().zip(types) {
            let node = take(&mut fields, &unquote(column))
                .ok_or_else(|| format!("the mapping returned no value for column {column}"))?;
            let value = node.carry(column_type).map_err(|error| format!("column {column}: {error}"))?;
            values.insert(format!("{letter}:{number}"), value);
        }
        Ok(values)
    }
}

/// The results of a mapping, where a panic is the error of the row that caused it. Halves the rows until each panic is
/// alone with its row.
fn map_without_panics(mapping: &dyn MapRows, rows: &[PgRow]) -> Vec<Result<MappedValue, String>> {
    match catch_unwind(AssertUnwindSafe(|| mapping.map(rows))) {
        Ok(results) => results,
        Err(panic) if rows.len() <= 1 => {
            vec![Err(format!("the mapping panicked: {}", message(&*panic))); rows.len()]
        }
        Err(_) => {
            let (first, second) = rows.split_at(rows.len() / 2);
            let mut results = map_without_panics(mapping, first);
            results.truncate(first.len());
            results
                .resize_with(first.len(), || Err("the mapping returned no result for this row".to_owned()));
            results.extend(map_without_panics(mapping, second));
            results
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
