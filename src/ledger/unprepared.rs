//! Queries whose statements have no name on the server.
//!
//! The preparation of such a statement and its execution are two messages, so it runs inside a transaction: outside of one, a
//! pooler in transaction mode may give them to two sessions, where the second finds no statement or that of another client. A
//! statement outside of a transaction is one message, with its values as [`literal`](super::literal)s: [`ask`].
//!
//! A named statement belongs to a session. Behind a pooler in transaction mode, its name collides with that of another client.
//! And with the statement cache off, as on the ledger's connections, `sqlx` names statements all the same and never closes
//! them, so a driver that queries several times a second would fill its session's memory.

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::{Query, QueryAs, QueryScalar};
use sqlx::{AssertSqlSafe, Executor, FromRow, Postgres, SqlSafeStr};

/// The rows of statements that are one message: one round trip, inside and outside of a transaction. `T` is `()` if only
/// their number matters.
///
/// The text contains its values, so each must be a number, a name of the library, or a [`literal`](super::literal). The
/// rows have the text format, which `sqlx` decodes to numbers, booleans, texts, and arrays of these.
pub(crate) async fn ask<'e, T>(
    executor: impl Executor<'e, Database = Postgres>,
    statements: impl Into<String>,
) -> Result<Vec<T>, sqlx::Error>
where
    T: for<'r> FromRow<'r, PgRow>,
{
    let rows = sqlx::raw_sql(AssertSqlSafe(statements.into())).fetch_all(executor).await?;
    rows.iter().map(T::from_row).collect()
}

/// The first row of statements that are one message, as [`ask`] returns it.
pub(crate) async fn ask_one<'e, T>(
    executor: impl Executor<'e, Database = Postgres>,
    statements: impl Into<String>,
) -> Result<T, sqlx::Error>
where
    T: for<'r> FromRow<'r, PgRow>,
{
    ask(executor, statements).await?.into_iter().next().ok_or(sqlx::Error::RowNotFound)
}

/// The first value of the first row of statements that are one message.
pub(crate) async fn ask_scalar<'e, T>(
    executor: impl Executor<'e, Database = Postgres>,
    statements: impl Into<String>,
) -> Result<T, sqlx::Error>
where
    (T,): for<'r> FromRow<'r, PgRow>,
{
    let (value,) = ask_one(executor, statements).await?;
    Ok(value)
}

pub(crate) fn query<'q>(sql: impl SqlSafeStr) -> Query<'q, Postgres, PgArguments> {
    sqlx::query(sql).persistent(false)
}

pub(crate) fn query_as<'q, T>(sql: impl SqlSafeStr) -> QueryAs<'q, Postgres, T, PgArguments>
where
    T: for<'r> FromRow<'r, PgRow>,
{
    sqlx::query_as(sql).persistent(false)
}

pub(crate) fn query_scalar<'q, T>(sql: impl SqlSafeStr) -> QueryScalar<'q, Postgres, T, PgArguments>
where
    (T,): for<'r> FromRow<'r, PgRow>,
{
    sqlx::query_scalar(sql).persistent(false)
}
