//! The order in which rows are visited: that of a unique index.
//!
//! Keys are text, one per column, and the server casts them to the column's type. So every type that an index can order
//! works. The order is that of the index: its columns in its sequence, under its collations.
//!
//! Statements contain keys as [literals](literal) and not as parameters.

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::query::Query;
use crate::ledger::jobs::KeyText;
use crate::ledger::{literal, unprepared};
use crate::migration::catalog::{quote, unquote};

/// A key as reports show it.
pub(crate) fn display_key(key: &[String]) -> String {
    if let [only] = key { only.clone() } else { format!("({})", key.join(", ")) }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyColumn {
    /// Quoted.
    pub(crate) name: String,
    pub(crate) sql_type: String,
    /// Set if the index has another collation than the column.
    collation: Option<String>,
    /// Equal values may have several images, such as `1.0` and `1.00`.
    is_weak: bool,
    /// The schema (quoted) of the operators that the index orders by, if it is not that of the built-in ones. An operator
    /// without a schema could be another one, with another order: that of `text` for `citext`.
    operators: Option<String>,
}

/// The columns of a unique index, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Keyset {
    pub(crate) columns: Vec<KeyColumn>,
}

/// A set of rows.
#[derive(Debug, Clone)]
pub(crate) enum Span {
    /// The rows above `from` (if it is set) up to and including `to`.
    Between { from: Option<KeyText>, to: KeyText },
    /// The rows with these keys.
    Keys(Vec<KeyText>),
}

/// What [`Keyset::batch_end`] finds.
pub(super) struct BatchEnd {
    /// How many rows it was to have.
    pub(super) wanted: u32,
    /// How many it has. If they are fewer, the range ends with them.
    pub(super) rows: i64,
    /// The last key. `None`: there are no rows.
    pub(super) last: Option<KeyText>,
}

impl BatchEnd {
    pub(super) fn of(row: &PgRow, wanted: u32) -> Result<Self, sqlx::Error> {
        Ok(Self { wanted, rows: row.try_get("rows")?, last: row.try_get("last")? })
    }
}

impl Keyset {
    /// A key whose types are not known, for statements that are shown and not run.
    pub(crate) fn named(names: &[String]) -> Self {
        let column = |name: &String| KeyColumn {
            name: quote(name),
            sql_type: String::new(),
            collation: None,
            is_weak: false,
            operators: None,
        };
        Self { columns: names.iter().map(column).collect() }
    }

    /// The same key with the wider type of each pair of integer columns, so that a key of either table can be compared with the
    /// keys of both. Where the types differ, images cannot be compared.
    pub(crate) fn widened(mut self, other: &Self) -> Self {
        const WIDTHS: [&str; 3] = ["smallint", "integer", "bigint"];
        let width = |column: &KeyColumn| WIDTHS.iter().position(|name| *name == column.sql_type);
        for column in &mut self.columns {
            let same = other.columns.iter().find(|same| same.name == column.name);
            column.is_weak &= same.is_some_and(|same| same.sql_type == column.sql_type);
            if let Some(wider) = same.filter(|same| width(column).is_some() && width(same) > width(column)) {
                column.sql_type.clone_from(&wider.sql_type);
            }
        }
        self
    }

    /// The names as the catalog has them.
    pub(crate) fn plain_names(&self) -> Vec<String> {
        self.columns.iter().map(|column| unquote(&column.name)).collect()
    }

    fn list(&self, each: impl Fn(usize, &KeyColumn) -> String) -> String {
        self.columns.iter().enumerate().map(|(n, column)| each(n, column)).collect::<Vec<_>>().join(", ")
    }

    /// `"a", "b"`
    pub(crate) fn names(&self) -> String {
        self.list(|_, column| column.name.clone())
    }

    /// `array["a"::text, "b"::text]`, of the relation with this name.
    pub(crate) fn as_text(&self, relation: &str) -> String {
        format!("array[{}]", self.list(|_, column| format!("{relation}.{}::text", column.name)))
    }

    /// `t."a" = o."a" and …`
    pub(crate) fn equal(&self, one: &str, other: &str) -> String {
        let pairs =
            self.columns.iter().map(|KeyColumn { name, .. }| format!("{one}.{name} = {other}.{name}"));
        pairs.collect::<Vec<_>>().join(" and ")
    }

    /// The columns of which equal values may have several images.
    pub(super) fn weak(&self) -> Vec<String> {
        self.columns.iter().filter(|column| column.is_weak).map(|column| column.name.clone()).collect()
    }

    /// The condition that equal keys of two relations are also identical. `None`: they always are.
    pub(super) fn identical(&self, one: &str, other: &str) -> Option<String> {
        let of = |relation: &str| {
            self.weak().iter().map(|name| format!("{relation}.{name}")).collect::<Vec<_>>().join(", ")
        };
        let compared = || format!("pg_catalog.record_image_eq(row({}), row({}))", of(one), of(other));
        (!self.weak().is_empty()).then(compared)
    }

    /// `"a" bigint, "b" text`
    pub(crate) fn declared(&self) -> String {
        self.list(|_, column| format!("{} {}", column.name, column.sql_type))
    }

    pub(super) fn ordered(&self, direction: &str) -> String {
        self.list(|_, column| format!("{}{direction}", column.collated()))
    }

    /// `name`: that of the key in a statement that is shown without values.
    ///
    /// A comparison of rows implies the one of their first columns. It is there for the planner, which takes a span between two
    /// rows for a ninth of the table, and would read all of the other table for each batch.
    fn compared(&self, operator: &str, key: &KeyText, name: &str) -> String {
        let [first, others @ ..] = &*self.columns else { return "true".to_owned() };
        if others.is_empty() {
            return first.compared(operator, &first.value(key.first(), name));
        }
        let value = |n: usize, column: &KeyColumn| column.value(key.get(n), &format!("{name}_{}", n + 1));
        let bound = first.compared(&format!("{}=", operator.trim_end_matches('=')), &value(0, first));
        if self.columns.iter().all(|column| column.operators.is_none()) {
            return format!("({}) {operator} ({}) and {bound}", self.ordered(""), self.list(value));
        }
        // A comparison of rows has one schema for all of its operators.
        let (mut equal, mut each) = (String::new(), Vec::new());
        for (n, column) in self.columns.iter().enumerate() {
            let is_last = n + 1 == self.columns.len();
            let strictly = if is_last { operator } else { operator.trim_end_matches('=') };
            each.push(format!("({equal}{})", column.compared(strictly, &value(n, column))));
            equal += &format!("{} and ", column.compared("=", &value(n, column)));
        }
        format!("({}) and {bound}", each.join(" or "))
    }

    /// The condition for the rows of a span.
    pub(crate) fn within(&self, span: &Span) -> String {
        match span {
            Span::Between { from: None, to } => self.compared("<=", to, "to"),
            Span::Between { from: Some(from), to } => {
                format!("{} and {}", self.compared("<=", to, "to"), self.compared(">", from, "from"))
            }
            Span::Keys(keys) => {
                let arrays = self.list(|n, _| literal::texts(keys.iter().filter_map(|key| key.get(n))));
                let wanted = self.list(|n, _| format!("k{n}"));
                let cast = self.list(|n, column| format!("k{n}::{}", column.sql_type));
                format!("({}) in (select {cast} from unnest({arrays}) as wanted ({wanted}))", self.names())
            }
        }
    }

    /// The number of rows and the last key of the batch that the first rows of a span make up, in tables with the same key.
    /// A batch with fewer rows than requested is the last one of the span.
    pub(crate) fn batch_end(&self, tables: &[&str], span: &Span, rows: &str) -> Query {
        let within = self.within(span);
        let aliased = self.list(|n, column| format!("{} as k{n}", column.collated()));
        let list = self.list(|n, _| format!("k{n}"));
        let backwards = self.list(|n, _| format!("k{n} desc"));
        let text = self.list(|n, _| format!("k{n}::text"));
        let first = |table: &&str, part: &str| {
            format!("(select {aliased} from {table} where {within} order by {} {part})", self.ordered(""))
        };
        let most = format!("limit {rows}");
        let batch = |part: &str| match tables {
            [only] => first(only, part),
            _ => {
                let both = tables.iter().map(|table| first(table, &most)).collect::<Vec<_>>().join(" union ");
                format!("(select {list} from ({both}) as both_sides order by {list} {part})")
            }
        };
        // Only a batch with fewer rows is counted. The server skips over rows in a tenth of the time that it needs to keep
        // and to count them.
        let (whole, few) = (batch(&format!("offset {rows} - 1 limit 1")), batch(&most));
        Query::new(format!(
            "with whole as materialized {whole} \
             select case when exists (select from whole) then {rows} else (select count(*) from {few} as few) end as rows, \
                 coalesce((select array[{text}] from whole), \
                     (select array[{text}] from {few} as few order by {backwards} limit 1)) as last"
        ))
    }

    /// The largest key in any of the tables.
    pub(crate) fn last(&self, tables: &[&str]) -> Query {
        let aliased = self.list(|n, column| format!("{} as k{n}", column.collated()));
        let each: Vec<String> = tables
            .iter()
            .map(|table| {
                format!("(select {aliased} from {table} order by {} limit 1)", self.ordered(" desc"))
            })
            .collect();
        Query::new(format!(
            "select array[{}] from ({}) as last order by {} limit 1",
            self.list(|n, _| format!("k{n}::text")),
            each.join(" union all "),
            self.list(|n, _| format!("k{n} desc"))
        ))
    }

    /// Keys that cut the rows into this many ranges of about the same size, from a sample of the table's pages.
    pub(crate) fn cuts(&self, table: &str, ranges: u16, percent: f64) -> Query {
        let aliased = self.list(|n, column| format!("{} as k{n}", column.collated()));
        let list = self.list(|n, _| format!("k{n}"));
        let text = self.list(|n, _| format!("k{n}::text"));
        Query::new(format!(
            "with sample as (select {aliased} from {table} tablesample system ({percent})), \
                  numbered as (select *, row_number() over (order by {list}) * {ranges} / (count(*) over () + 1) as cut \
                      from sample) \
             select distinct on (cut) array[{text}] from numbered where cut > 0 order by cut, {list}"
        ))
    }
}

impl KeyColumn {
    fn collated(&self) -> String {
        match &self.collation {
            Some(collation) => format!("{} collate {collation}", self.name),
            None => self.name.clone(),
        }
    }

    fn compared(&self, operator: &str, value: &str) -> String {
        match &self.operators {
            Some(schema) => format!("{} operator({schema}.{operator}) {value}", self.collated()),
            None => format!("{} {operator} {value}", self.collated()),
        }
    }

    /// A value of the column. `None`: a name, in a statement that is shown.
    fn value(&self, value: Option<&String>, name: &str) -> String {
        let value = value.map_or_else(|| format!(":{name}"), |value| literal::text(value));
        if self.sql_type.is_empty() { value } else { format!("{value}::text::{}", self.sql_type) }
    }
}

/// A unique index by which rows may be visited.
#[derive(Debug, Default)]
struct Candidate {
    primary: bool,
    names: Vec<String>,
    columns: Vec<KeyColumn>,
    descending: Vec<bool>,
    problems: Vec<String>,
}

impl Candidate {
    fn problems(mut self) -> Result<Keyset, Vec<String>> {
        if self.descending.windows(2).any(|pair| pair[0] != pair[1]) {
            self.problems.push(format!(
                "the unique index on {} has columns in opposite directions",
                self.names.join(", ")
            ));
        }
        if self.problems.is_empty() { Ok(Keyset { columns: self.columns }) } else { Err(self.problems) }
    }
}

/// The key with these columns. If none are named, the table's primary key, or else its unique index with the fewest
/// columns. The inner error says why rows cannot be visited by any.
pub(crate) async fn find(
    connection: &mut PgConnection,
    table: &str,
    named: &[String],
) -> Result<Result<Keyset, Vec<String>>, sqlx::Error> {
    let mut candidates = candidates(connection, table).await?;
    if named.is_empty() {
        candidates.sort_by_key(|candidate| (!candidate.primary, candidate.names.len()));
        let mut problems = Vec::new();
        for candidate in candidates {
            match candidate.problems() {
                Ok(keyset) => return Ok(Ok(keyset)),
                Err(more) => problems.extend(more),
            }
        }
        problems.push(
            "has no unique index over columns that are NOT NULL, so its rows have no order in which they could be \
             visited; add a primary key"
                .into(),
        );
        return Ok(Err(problems));
    }
    let same = |candidate: &Candidate| {
        candidate.names.len() == named.len() && named.iter().all(|name| candidate.names.contains(name))
    };
    let (mut usable, mut unusable): (Vec<_>, Vec<_>) =
        candidates.into_iter().filter(same).map(Candidate::problems).partition(Result::is_ok);
    if let Some(first) = usable.drain(..).chain(unusable.drain(..)).next() {
        return Ok(first);
    }
    let mut problems = Vec::new();
    for name in named {
        let not_null: Option<bool> = unprepared::query_scalar(
            "select attnotnull from pg_attribute \
             where attrelid = to_regclass($1) and attname = $2 and attnum > 0 and not attisdropped",
        )
        .bind(table)
        .bind(name)
        .fetch_optional(&mut *connection)
        .await?;
        match not_null {
            None => problems.push(format!("key column {} does not exist", quote(name))),
            Some(false) => problems.push(format!("key column {} can be null", quote(name))),
            Some(true) => {}
        }
    }
    let names = named.iter().map(|name| quote(name)).collect::<Vec<_>>().join(", ");
    problems.push(format!("key {names} has no unique index of its own"));
    Ok(Err(problems))
}

async fn candidates(connection: &mut PgConnection, table: &str) -> Result<Vec<Candidate>, sqlx::Error> {
    let rows = unprepared::query(
        "select i.indexrelid::bigint as index, i.indisprimary as is_primary, a.attname::text as name, \
                format_type(a.atttypid, a.atttypmod) as type, a.attnotnull as not_null, \
                i.indoption[n] & 1 = 1 as descending, c.opcdefault as usual_order, \
                (select quote_ident(s.nspname) from pg_amop o join pg_operator p on p.oid = o.amopopr \
                    join pg_namespace s on s.oid = p.oprnamespace where o.amopfamily = c.opcfamily and o.amopstrategy = 1 \
                        and o.amoplefttype = c.opcintype and o.amoprighttype = c.opcintype \
                        and s.nspname <> 'pg_catalog') as operators, \
                not (t.typnamespace = 'pg_catalog'::regnamespace and (t.typname = any (array['bool', 'bytea', 'date', 'int2', \
                        'int4', 'int8', 'timestamp', 'timestamptz', 'uuid']) \
                    or t.typname in ('text', 'varchar') and coalesce((select l.collisdeterministic from pg_collation l \
                        where l.oid = i.indcollation[n]), false))) as is_weak, \
                case when i.indcollation[n] <> a.attcollation then \
                    (select quote_ident(s.nspname) || '.' || quote_ident(l.collname) from pg_collation l \
                     join pg_namespace s on s.oid = l.collnamespace where l.oid = i.indcollation[n]) end as collation \
         from pg_index i \
         cross join lateral generate_series(0, i.indnkeyatts - 1) as n \
         join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[n] \
         join pg_type t on t.oid = a.atttypid join pg_opclass c on c.oid = i.indclass[n] \
         where i.indrelid = to_regclass($1) and i.indisunique and i.indisvalid and i.indimmediate \
           and i.indpred is null and i.indexprs is null \
         order by i.indexrelid, n",
    )
    .bind(table)
    .fetch_all(connection)
    .await?;
    let mut candidates = Vec::new();
    let mut last = None;
    for row in rows {
        let index: i64 = row.try_get("index")?;
        if last.replace(index) != Some(index) {
            candidates.push(Candidate { primary: row.try_get("is_primary")?, ..Candidate::default() });
        }
        let Some(candidate) = candidates.last_mut() else { continue };
        let name: String = row.try_get("name")?;
        let column = KeyColumn {
            name: quote(&name),
            sql_type: row.try_get("type")?,
            collation: row.try_get("collation")?,
            is_weak: row.try_get("is_weak")?,
            operators: row.try_get("operators")?,
        };
        if !row.try_get::<bool, _>("not_null")? {
            candidate.problems.push(format!("key column {} can be null", column.name));
        }
        if !row.try_get::<bool, _>("usual_order")? {
            candidate.problems.push(format!(
                "the unique index on {} does not use the default operator class of its type",
                column.name
            ));
        }
        candidate.descending.push(row.try_get("descending")?);
        candidate.names.push(name);
        candidate.columns.push(column);
    }
    Ok(candidates)
}
