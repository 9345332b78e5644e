use sqlx::{AssertSqlSafe, PgPool};

use super::store::{MirrorStore, StoreError};
use crate::config::ConfigError;
use crate::ledger::unprepared;
use crate::migration::catalog::{check_table, quote_table};

/// How many keys one call of `keys` returns.
const PAGE: i64 = 1_000;

/// Rows in a table of another Postgres: `(key text primary key, version bigint, body jsonb)`. A null body marks a deleted
/// row. Give the pool a short `acquire_timeout`, and the role a `statement_timeout`.
#[derive(Debug, Clone)]
pub struct PostgresMirror {
    pool: PgPool,
    /// Quoted.
    table: String,
}

impl PostgresMirror {
    /// A store in this table, which may be named with its schema.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a name that is not a plain one.
    pub fn new(pool: PgPool, table: &str) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        check_table("table", table, &mut problems);
        ConfigError::check(problems)?;
        Ok(Self { pool, table: quote_table(table) })
    }

    /// The pool that the store uses.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }
}

impl MirrorStore for PostgresMirror {
    async fn prepare(&self) -> Result<(), StoreError> {
        let create = format!(
            "create table if not exists {} (key text collate \"C\" primary key, version bigint not null, body jsonb)",
            self.table
        );
        sqlx::query(AssertSqlSafe(create)).execute(&self.pool).await?;
        Ok(())
    }

    async fn is_prepared(&self) -> Result<bool, StoreError> {
        let there = unprepared::query_scalar("select to_regclass($1) is not null");
        Ok(there.bind(&self.table).fetch_one(&self.pool).await?)
    }

    async fn put(&self, key: &str, version: i64, row: Option<&str>) -> Result<bool, StoreError> {
        let put = format!(
            "insert into {} as kept (key, version, body) values ($1, $2, $3::text::jsonb) \
             on conflict (key) do update set version = excluded.version, body = excluded.body \
             where kept.version < excluded.version",
            self.table
        );
        let put = sqlx::query(AssertSqlSafe(put)).bind(key).bind(version).bind(row);
        Ok(put.execute(&self.pool).await?.rows_affected() == 1)
    }

    async fn get(&self, key: &str) -> Result<Option<String>, StoreError> {
        let get = format!("select body::text from {} where key = $1", self.table);
        let body: Option<Option<String>> =
            sqlx::query_scalar(AssertSqlSafe(get)).bind(key).fetch_optional(&self.pool).await?;
        Ok(body.flatten())
    }

    async fn keys(&self, cursor: Option<&str>) -> Result<(Vec<String>, Option<String>), StoreError> {
        let keys = format!(
            "select key from {} where ($1::text is null or key > $1) and body is not null order by key limit $2",
            self.table
        );
        let keys: Vec<String> =
            sqlx::query_scalar(AssertSqlSafe(keys)).bind(cursor).bind(PAGE).fetch_all(&self.pool).await?;
        let next = keys.last().filter(|_| keys.len() as i64 == PAGE).cloned();
        Ok((keys, next))
    }
}
