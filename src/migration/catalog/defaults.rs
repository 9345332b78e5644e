//! Defaults of the old side's columns: an insert that names neither side relies on them.

use sqlx::{AssertSqlSafe, Connection, FromRow, PgConnection};

use super::counterpart::{Attached, attached, statement};
use super::expressions::resolve;
use super::names::{quote, unquote};
use crate::ledger::unprepared;

/// The name by which a default is waived.
const NAME: &str = "default";

/// A column of the old side, the column of the new side that replaces it, and what computes the one from the other.
pub(crate) struct MovedColumn<'a> {
    pub(crate) old: &'a str,
    pub(crate) new: &'a str,
    /// `None` for a mapping in Rust.
    pub(crate) forward: Option<&'a str>,
}

#[derive(FromRow)]
struct Default {
    expression: String,
    sql_type: String,
}

/// The default of a stored column. A sequence is carried over by itself, or refused.
const READ: &str = "\
select pg_get_expr(d.adbin, d.adrelid) as expression, format_type(a.atttypid, a.atttypmod) as sql_type \
    from pg_attribute a join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum \
    where a.attrelid = to_regclass($1) and a.attname = $2 and a.attgenerated = '' \
        and pg_get_expr(d.adbin, d.adrelid) !~ '^(nextval[(]|NULL::)'";

/// The defaults that the new side lacks. Both tables are quoted, the columns are as the catalog names them.
pub(crate) async fn missing_defaults(
    connection: &mut PgConnection,
    [old_table, new_table]: [&str; 2],
    columns: &[MovedColumn<'_>],
) -> Result<Vec<Attached>, sqlx::Error> {
    let mut found = Vec::new();
    for column in columns {
        let Some(default) = read(connection, old_table, column.old).await? else { continue };
        if has_default(connection, new_table, column.new).await? {
            continue;
        }
        let mapped = mapped(connection, old_table, column, &default).await?;
        let set = |expression| {
            format!("alter table {new_table} alter column {} set default {expression}", quote(column.new))
        };
        let what = format!(
            "the default of column {} of {old_table} ({}), which an insert gets that names neither side",
            quote(column.old),
            default.expression
        );
        let steps = mapped.map(|expression| statement(set(expression))).into_iter().collect();
        found.push(attached(NAME, what, steps));
    }
    Ok(found)
}

async fn read(
    connection: &mut PgConnection,
    table: &str,
    column: &str,
) -> Result<Option<Default>, sqlx::Error> {
    unprepared::query_as(READ).bind(table).bind(column).fetch_optional(connection).await
}

/// Of any kind, an identity included.
async fn has_default(connection: &mut PgConnection, table: &str, column: &str) -> Result<bool, sqlx::Error> {
    unprepared::query_scalar(
        "select exists (select from pg_attribute a where a.attrelid = to_regclass($1) and a.attname = $2 \
             and (a.atthasdef or a.attidentity <> ''))",
    )
    .bind(table)
    .bind(column)
    .fetch_one(connection)
    .await
}

/// The default of the new column that means the same; `None` if it cannot be derived.
async fn mapped(
    connection: &mut PgConnection,
    table: &str,
    column: &MovedColumn<'_>,
    default: &Default,
) -> Result<Option<String>, sqlx::Error> {
    let (Some(forward), Default { expression, sql_type }) = (column.forward, default) else {
        return Ok(None);
    };
    let old = quote(column.old);
    let is_bare =
        forward == old || (unquote(forward) == column.old && column.old == column.old.to_lowercase());
    if is_bare {
        return Ok(Some(expression.clone()));
    }
    // A default that differs from insert to insert has no value that could be mapped now.
    match resolve(connection, table, &[], std::slice::from_ref(expression)).await {
        Ok(resolved) if resolved.unstable.is_empty() => {}
        Ok(_) | Err(sqlx::Error::Database(_)) => return Ok(None),
        Err(error) => return Err(error),
    }
    let mut trial = connection.begin().await?;
    let query = format!(
        "select quote_literal(({forward}\n)::text) from (select ({expression})::{sql_type} as {old}) as mapped"
    );
    let value = unprepared::query_scalar(AssertSqlSafe(query)).fetch_one(&mut *trial).await;
    trial.rollback().await?;
    match value {
        Ok(value) => Ok(value),
        // It depends on another column of the row, for example.
        Err(sqlx::Error::Database(_)) => Ok(None),
        Err(error) => Err(error),
    }
}
