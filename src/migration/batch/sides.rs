//! The two sides, and the parts that statements over both are made of.
//!
//! Names are checked and quoted once, when the plan is built. Keys and values of mappings in Rust are parameters.
//! Expressions are the user's own SQL.

use sqlx::postgres::PgRow;

use super::column_type::ColumnType;
use super::keyset::{Keyset, Span};
use super::mapping::{Failures, Mapping, MappingCode};
use super::query::Query;

/// The two sides: columns of one table, or two tables with the same key.
#[derive(Debug, Clone)]
pub(crate) struct Sides {
    /// Quoted; the same if both sides are in one table.
    pub(crate) old: String,
    pub(crate) new: String,
    /// Columns of the new side from rows of the old table.
    pub(crate) forward: Mapping,
    /// Columns of the old side from rows of the new table.
    pub(crate) backward: Mapping,
    /// `None`: the old side is the whole old table, or columns beside those of the new side.
    pub(crate) part: Option<Part>,
}

/// What of the old table is the old side, where that is not the whole table.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    /// The rows that the new table has, as an SQL condition over a row of the old one.
    pub(crate) condition: String,
    /// Whether the rows stay, and only lose the columns that `backward` computes.
    pub(crate) keeps_rows: bool,
}

impl Part {
    /// The condition, which is never null. It may end with a comment.
    pub(crate) fn holds(&self) -> String {
        format!("({}\n) is true", self.condition)
    }
}

/// The JSON that mappings in Rust made of the rows of a span: `forward` of the old rows, `backward` of the new rows, and
/// `forward` of the result of `backward`.
#[derive(Debug, Default)]
pub(crate) struct MappedRows {
    pub(crate) forward: Option<String>,
    pub(crate) backward: Option<String>,
    pub(crate) round_trip: Option<String>,
}

/// The sides with the key and the types that the catalog has for them.
#[derive(Debug, Clone)]
pub(crate) struct Scope<'a> {
    pub(crate) sides: &'a Sides,
    pub(crate) key: Keyset,
    /// The types of the columns that `backward` computes.
    pub(crate) old_types: Vec<ColumnType>,
    /// The types of the columns that `forward` computes.
    pub(crate) new_types: Vec<ColumnType>,
}

/// The condition under which a side stores another value than it should: the stored values are not identical to the
/// expected ones after their assignment to the columns.
///
/// Identity is that of the stored bytes, not the `=` of the type: `1 month` is not `30 days`, `1.0` is not `1.000`, and
/// `json` has no `=`. Where `=` is identity, it is used, because it is faster. The condition does not look for nulls
/// only, because a side that was written, given up and expanded again still holds old values.
pub(super) fn differ(found: &[String], expected: &[String], types: &[ColumnType]) -> String {
    if cfg!(cutover_break = "compare") {
        return format!("row({}) is null", found.join(", "));
    }
    let (mut differ, mut found_images, mut expected_images) = (Vec::new(), Vec::new(), Vec::new());
    for ((found, expected), ty) in found.iter().zip(expected).zip(types) {
        let (found, expected) = (ty.found(found), ty.cast(expected));
        match ty.identity(&found, &expected) {
            Some(same) => differ.push(format!(
                "case when {found} is null then {expected} is not null else not coalesce({same}, false) end"
            )),
            None => {
                found_images.push(found);
                expected_images.push(expected);
            }
        }
    }
    if !found_images.is_empty() {
        differ.push(format!(
            "not pg_catalog.record_image_eq(row({}), row({}))",
            found_images.join(", "),
            expected_images.join(", ")
        ));
    }
    if let [only] = &*differ { only.clone() } else { format!("({})", differ.join(" or ")) }
}

/// Values as an assignment to the columns would store them.
pub(super) fn cast(values: &[String], types: &[ColumnType]) -> Vec<String> {
    values.iter().zip(types).map(|(value, ty)| ty.cast(value)).collect()
}

/// `relation."f:0"`, `relation."f:1"` and so on: names that no column of the user has.
pub(super) fn columns(relation: &str, letter: char, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{relation}\"{letter}:{n}\"")).collect()
}

pub(super) fn of(relation: &str, names: &[String]) -> Vec<String> {
    names.iter().map(|name| format!("{relation}.{name}")).collect()
}

pub(super) fn zip(one: &[String], other: &[String], each: impl Fn(&str, &str) -> String) -> String {
    one.iter().zip(other).map(|(one, other)| each(one, other)).collect::<Vec<_>>().join(", ")
}

impl Scope<'_> {
    pub(super) fn is_one_table(&self) -> bool {
        self.sides.old == self.sides.new
    }

    /// The tables whose rows are visited.
    pub(crate) fn tables(&self) -> Vec<&str> {
        if self.is_one_table() { vec![&self.sides.old] } else { vec![&self.sides.old, &self.sides.new] }
    }

    /// The types of the columns that a mapping computes: `b` is the mapping back.
    fn types(&self, letter: char) -> &[ColumnType] {
        if letter == 'b' { &self.old_types } else { &self.new_types }
    }

    /// Maps rows, as [`Mapping::run`] does.
    pub(crate) fn run(
        &self,
        mapping: &Mapping,
        rows: &[PgRow],
        letter: char,
    ) -> Result<(String, Failures), sqlx::Error> {
        mapping.run(&self.key, rows, letter, self.types(letter))
    }

    /// A statement over a span, whose parameters are the JSON of mappings in Rust.
    pub(super) fn query(
        &self,
        text: impl Fn(&dyn Fn(usize) -> String) -> String,
        json: &[&Option<String>],
    ) -> Query {
        let present: Vec<&String> = json.iter().copied().flatten().collect();
        let number = |index: usize| {
            let before = json.iter().take(index).filter(|json| json.is_some()).count();
            format!("${}", before + 1)
        };
        present.into_iter().fold(Query::new(text(&number)), |query, json| query.bind(json.clone()))
    }

    /// A relation of keys and computed values.
    pub(super) fn relation(
        &self,
        mapping: &Mapping,
        from: &str,
        span: &Span,
        lock: &str,
        letter: char,
        json: &str,
    ) -> String {
        let (names, count) = (self.key.names(), mapping.columns.len());
        match &mapping.code {
            MappingCode::Sql(expressions) => {
                let values =
                    zip(expressions, &columns("", letter, count), |e, name| format!("({e}) as {name}"));
                let (within, moves) = (self.key.within(span), self.and_moves(from));
                format!("(select {names}, {values} from {from} where {within}{moves}{lock})")
            }
            MappingCode::Rust(_) => self.recordset(letter, json, self.types(letter)),
        }
    }

    /// A relation of the keys and values in the JSON of a mapping in Rust.
    pub(super) fn recordset(&self, letter: char, json: &str, types: &[ColumnType]) -> String {
        let names = columns("", letter, types.len());
        let declared: Vec<String> =
            names.iter().zip(types).map(|(name, ty)| format!("{name} {}", ty.carrier())).collect();
        let typed: Vec<String> = names
            .iter()
            .zip(types)
            .map(
                |(name, ty)| {
                    if ty.is_json() { format!("{name}::{} as {name}", ty.name) } else { name.clone() }
                },
            )
            .collect();
        format!(
            "(select {}, {} from jsonb_to_recordset({json}::text::jsonb) as mapped ({}, {}))",
            self.key.names(),
            typed.join(", "),
            self.key.declared(),
            declared.join(", ")
        )
    }

    pub(super) fn first_key_column(&self, relation: &str) -> String {
        self.key.columns.first().map(|column| format!("{relation}.{}", column.name)).unwrap_or_default()
    }

    /// Locks the rows of a span against every change.
    pub(crate) fn lock(&self, table: &str, span: &Span) -> Query {
        Query::new(format!("select 1 from {table} where {} for share", self.key.within(span)))
    }

    /// The rows of a span with their keys, as a mapping in Rust gets them. `lock` if they are to be copied.
    pub(crate) fn rows(&self, table: &str, span: &Span, lock: bool) -> Query {
        let text = format!(
            "select {} as cutover_key, t.* from {table} as t where {}{}{}",
            self.key.as_text("t"),
            self.key.within(span),
            self.and_moves(table),
            if lock { " for share" } else { "" }
        );
        Query::new(text)
    }
}
