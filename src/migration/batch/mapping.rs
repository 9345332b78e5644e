use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};
use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row};

use super::keyset::{KeyText, Keyset};
use crate::migration::catalog::unquote;

/// What is said of a way back in Rust whose way there is SQL.
pub(crate) const NEEDS_FORWARD_ROWS: &str =
    "needs `forward_rows`: the way there and back is tried on the data, all of it in Rust or in SQL";

/// Maps rows of one side to values of the other in Rust, for what SQL can't say.
///
/// A closure `Fn(&[PgRow]) -> Vec<Result<Value, String>>` is one, for code that sees to many rows at once;
/// [`map_each`] makes one of a closure over a single row.
pub trait MapRows: Send + Sync + 'static {
    /// One result per row, in their order: for a column its value, for a table an object of the other table's
    /// columns. An error sets its row aside.
    ///
    /// The result must depend on nothing but the row. Called within a batch's transaction, with the rows locked, so
    /// it has to be fast.
    fn map(&self, rows: &[PgRow]) -> Vec<Result<Value, String>>;
}

impl<F> MapRows for F
where
    F: Fn(&[PgRow]) -> Vec<Result<Value, String>> + Send + Sync + 'static,
{
    fn map(&self, rows: &[PgRow]) -> Vec<Result<Value, String>> {
        self(rows)
    }
}

/// A mapping of one row at a time: from what `sqlx` makes of the row to what `serde` makes of the result.
///
/// A `numeric` keeps all its digits when the result has it as a string.
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
        let one = |row| {
            let old = Old::from_row(row).map_err(|error| error.to_string())?;
            let new = map(old).map_err(|error| error.to_string())?;
            serde_json::to_value(new).map_err(|error| error.to_string())
        };
        rows.iter().map(one).collect()
    }
}

/// How the columns of one side are had from a row of the other.
#[derive(Debug, Clone)]
pub(crate) struct Mapping {
    /// Quoted.
    pub(crate) columns: Vec<String>,
    pub(crate) code: MappingCode,
    /// Whether a mapping in Rust makes an object of the columns, or the value of the only one.
    pub(crate) is_object: bool,
}

#[derive(Clone)]
pub(crate) enum MappingCode {
    /// An expression per column.
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

/// Rows whose mapping failed, each with its error.
pub(crate) type Failed = Vec<(KeyText, String)>;

impl Mapping {
    /// Maps rows that carry their key, if this is a mapping in Rust. Returns JSON for `jsonb_to_recordset`, with columns
    /// named by `letter`, and the rows that failed.
    pub(crate) fn run(
        &self,
        key: &Keyset,
        rows: &[PgRow],
        letter: char,
    ) -> Result<(String, Failed), sqlx::Error> {
        let results = match &self.code {
            MappingCode::Rust(mapping) => mapping.map(rows),
            MappingCode::Sql(_) => Vec::new(),
        };
        let (mut mapped, mut failed) = (Vec::new(), Vec::new());
        let missing =
            std::iter::repeat_with(|| Err("the mapping returned no result for this row".to_owned()));
        for (row, result) in rows.iter().zip(results.into_iter().chain(missing)) {
            let values_of_key: KeyText = row.try_get("cutover_key")?;
            match result.and_then(|value| self.named(value, letter)) {
                Ok(mut values) => {
                    values.extend(
                        key.plain_names().into_iter().zip(values_of_key.into_iter().map(Value::String)),
                    );
                    mapped.push(Value::Object(values));
                }
                Err(error) => failed.push((values_of_key, error)),
            }
        }
        Ok((Value::Array(mapped).to_string(), failed))
    }

    fn named(&self, value: Value, letter: char) -> Result<Map<String, Value>, String> {
        if !self.is_object {
            return Ok(Map::from_iter([(format!("{letter}:0"), value)]));
        }
        let Value::Object(mut object) = value else {
            return Err(format!("the mapping has to make an object of columns, not {value}"));
        };
        let mut values = Map::new();
        for (number, column) in self.columns.iter().enumerate() {
            let value =
                object.remove(&unquote(column)).ok_or_else(|| format!("the mapping left out {column}"))?;
            values.insert(format!("{letter}:{number}"), value);
        }
        Ok(values)
    }
}
