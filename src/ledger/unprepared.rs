//! Queries whose statements have no name on the server.
//!
//! The preparation of such a statement and its execution are two messages, so it runs inside a transaction: outside of one, a
//! pooler in transaction mode may give them to two sessions, where the second finds no statement or that of another client. A
//! statement outside of a transaction is one message: `sqlx::raw_sql`, with its values as [`literal`](super::literal)s.
//!
//! A named statement belongs to a session. Behind a pooler in transaction mode, its name collides with that of another client.
//! And with the statement cache off, as on the ledger's connections, `sqlx` names statements all the same and never closes
//! them, so a driver that queries several times a second would fill its session's memory.

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::{Query, QueryAs, QueryScalar};
use sqlx::{FromRow, Postgres, SqlSafeStr};

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
