use sqlx::PgPool;

use super::store::{MirrorStore, StoreError};
use crate::config::ConfigError;
use crate::ledger::{literal, unprepared};
use crate::migration::catalog::{check_table, quote_table};

/// How many keys one call of `keys` returns.
const PAGE: i64 = 1_000;

// Each statement is one message without a name, so a pooler in transaction mode may stand before the store.
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
        unprepared::ask::<()>(&self.pool, create).await?;
        Ok(())
    }

    async fn is_prepared(&self) -> Result<bool, StoreError> {
        let there = format!("select to_regclass({}) is not null", literal::text(&self.table));
        Ok(unprepared::ask_scalar(&self.pool, there).await?)
    }

    async fn put(&self, key: &str, version: i64, row: Option<&str>) -> Result<bool, StoreError> {
        let put = format!(
            "insert into {} as kept (key, version, body) values ({}, {version}, {}::jsonb) \
             on conflict (key) do update set version = excluded.version, body = excluded.body \
             where kept.version < excluded.version returning key",
            self.table,
            literal::text(key),
            row.map_or_else(|| "null".to_owned(), literal::text)
        );
        Ok(unprepared::ask::<()>(&self.pool, put).await?.len() == 1)
    }

    async fn get(&self, key: &str) -> Result<Option<String>, StoreError> {
        let get = format!("select body::text from {} where key = {}", self.table, literal::text(key));
        let rows: Vec<(Option<String>,)> = unprepared::ask(&self.pool, get).await?;
        Ok(rows.into_iter().next().and_then(|(body,)| body))
    }

    async fn keys(&self, cursor: Option<&str>) -> Result<(Vec<String>, Option<String>), StoreError> {
        let after = cursor.map(|key| format!("key > {} and ", literal::text(key))).unwrap_or_default();
        let keys =
            format!("select key from {} where {after}body is not null order by key limit {PAGE}", self.table);
        let rows: Vec<(String,)> = unprepared::ask(&self.pool, keys).await?;
        let keys: Vec<String> = rows.into_iter().map(|(key,)| key).collect();
        let next = keys.last().filter(|_| keys.len() as i64 == PAGE).cloned();
        Ok((keys, next))
    }
}
