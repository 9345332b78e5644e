//! The type of a column, the assignment cast to it, and how a value of a Rust mapping is carried to it.

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use crate::ledger::unprepared;
use crate::migration::catalog::unquote;

/// A column's type, with its modifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ColumnType {
    /// As in SQL, with the modifier: `numeric(12,2)`.
    pub(crate) name: String,
    pub(super) cast: Cast,
    pub(crate) is_array: bool,
    /// The kind of the value or, for an array, of its elements.
    pub(crate) element: Element,
    pub(super) equality: Equality,
}

/// What the type's `=` says of the stored values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Equality {
    /// Equal values are identical.
    Identity,
    /// The same under the collation `C`.
    IdentityOfText,
    /// Values that are not identical can be equal, or nothing is known.
    Weaker,
}

/// How an expression gets the value that an assignment to the column would store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cast {
    /// Not known, because the catalog was not asked.
    None,
    /// A cast gives the same value.
    Explicit,
    /// A cast truncates where an assignment fails. The function behind both fails if its argument says that the cast is
    /// not explicit.
    Length { function: String, base: String, modifier: i32 },
    /// An array whose elements a cast would truncate: the type without its modifier. An assignment either changes
    /// nothing, fails, or removes trailing spaces; the last is reported as a difference.
    Unmodified(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Element {
    Scalar,
    Composite,
    Bytes,
    Json,
}

impl ColumnType {
    /// A type that is known from a description only.
    pub(crate) fn described(name: &str) -> Self {
        Self { cast: Cast::Explicit, ..Self::unknown() }.named(name)
    }

    /// A type that is not known, for statements that are shown and not run.
    pub(crate) fn unknown() -> Self {
        Self {
            name: "text".to_owned(),
            cast: Cast::None,
            is_array: false,
            element: Element::Scalar,
            equality: Equality::Weaker,
        }
    }

    fn named(self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self }
    }

    /// The expression's value as an assignment to the column would store it.
    pub(crate) fn cast(&self, expression: &str) -> String {
        match &self.cast {
            Cast::None => format!("({expression})"),
            Cast::Explicit => format!("({expression})::{}", self.name),
            Cast::Length { function, base, modifier } => {
                format!("pg_catalog.{function}(({expression})::{base}, {modifier}, false)::{}", self.name)
            }
            Cast::Unmodified(name) => format!("({expression})::{name}"),
        }
    }

    /// The column's value, in the type that [`ColumnType::cast`] gives.
    pub(crate) fn found(&self, column: &str) -> String {
        match &self.cast {
            Cast::Unmodified(name) => format!("{column}::{name}"),
            _ => column.to_owned(),
        }
    }

    /// The condition that both values, if neither is null, are identical. `None`: only their images tell.
    pub(super) fn identity(&self, one: &str, other: &str) -> Option<String> {
        match self.equality {
            Equality::Identity => Some(format!("{one} operator(pg_catalog.=) {other}")),
            Equality::IdentityOfText => Some(format!(
                "{one} collate pg_catalog.\"C\" operator(pg_catalog.=) {other} collate pg_catalog.\"C\""
            )),
            Equality::Weaker => None,
        }
    }

    /// The type as which a value of a Rust mapping reaches the server. JSON travels as text, because a JSON null would
    /// otherwise arrive as an SQL NULL.
    pub(crate) fn carrier(&self) -> &str {
        if self.is_json() { "text" } else { &self.name }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.element == Element::Json && !self.is_array
    }

    fn from_row(row: &PgRow) -> Result<Option<Self>, sqlx::Error> {
        let Some(name) = row.try_get::<Option<String>, _>("name")? else { return Ok(None) };
        let (base, modifier): (String, i32) = (row.try_get("base")?, row.try_get("modifier")?);
        let length_function: Option<String> = row.try_get("length_function")?;
        let is_array: bool = row.try_get("is_array")?;
        let equality = match row.try_get::<String, _>("builtin")?.as_str() {
            "bool" | "bytea" | "date" | "int2" | "int4" | "int8" | "timestamp" | "timestamptz" | "uuid" => {
                Equality::Identity
            }
            "text" | "varchar" => Equality::IdentityOfText,
            _ => Equality::Weaker,
        };
        let cast = match length_function {
            Some(_) if modifier < 0 => Cast::Explicit,
            Some(_) if is_array => Cast::Unmodified(base),
            Some(function) => Cast::Length { function, base, modifier },
            None => Cast::Explicit,
        };
        let element = match (&*row.try_get::<String, _>("element")?, &*row.try_get::<String, _>("kind")?) {
            ("json" | "jsonb", _) => Element::Json,
            ("bytea", _) => Element::Bytes,
            (_, "c") => Element::Composite,
            _ => Element::Scalar,
        };
        Ok(Some(Self { name, cast, is_array, element, equality }))
    }

    /// The types of columns (quoted); `None` for a column that does not exist.
    pub(crate) async fn load(
        tx: &mut PgConnection,
        table: &str,
        columns: &[String],
    ) -> Result<Vec<Option<Self>>, sqlx::Error> {
        let rows = unprepared::query(
            "select format_type(a.atttypid, a.atttypmod) as name, \
                    coalesce(format_type(base.oid, -1), '') as base, \
                    greatest(a.atttypmod, domains.modifier) as modifier, \
                    coalesce(base.typcategory = 'A', false) as is_array, \
                    case when base.typnamespace = 'pg_catalog'::regnamespace then base.typname::text else '' end as builtin, \
                    coalesce(element.typname::text, '') as element, coalesce(element.typtype::text, '') as kind, \
                    (select quote_ident(p.proname) from pg_cast c join pg_proc p on p.oid = c.castfunc \
                     where c.castsource = element.oid and c.casttarget = element.oid and p.pronargs = 3) \
                        as length_function \
             from unnest($2::text[]) with ordinality as wanted (name, n) \
             left join pg_attribute a on a.attrelid = to_regclass($1) and a.attname = wanted.name \
                 and a.attnum > 0 and not a.attisdropped \
             left join lateral ( \
                 with recursive chain (oid, typtype, typbasetype, typtypmod) as ( \
                     select t.oid, t.typtype, t.typbasetype, t.typtypmod from pg_type t where t.oid = a.atttypid \
                     union all \
                     select t.oid, t.typtype, t.typbasetype, t.typtypmod from chain \
                     join pg_type t on chain.typtype = 'd' and t.oid = chain.typbasetype) \
                 select max(chain.oid) filter (where typtype <> 'd') as oid, \
                        coalesce(max(typtypmod) filter (where typtype = 'd'), -1) as modifier \
                 from chain) domains on true \
             left join pg_type base on base.oid = domains.oid \
             left join pg_type element \
                 on element.oid = case when base.typcategory = 'A' then base.typelem else base.oid end \
             order by n",
        )
        .bind(table)
        .bind(columns.iter().map(|column| unquote(column)).collect::<Vec<_>>())
        .fetch_all(tx)
        .await?;
        rows.iter().map(Self::from_row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cast_that_would_truncate_goes_through_the_length_function() {
        let cast =
            Cast::Length { function: "\"varchar\"".into(), base: "character varying".into(), modifier: 7 };
        let limited = ColumnType { cast, ..ColumnType::described("character varying(3)") };
        assert_eq!(
            limited.cast("a"),
            "pg_catalog.\"varchar\"((a)::character varying, 7, false)::character varying(3)"
        );
        assert_eq!(ColumnType::described("numeric(12,2)").cast("a"), "(a)::numeric(12,2)");
        assert_eq!(ColumnType::unknown().cast("a"), "(a)");
    }
}
