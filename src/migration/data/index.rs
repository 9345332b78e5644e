//! Indexes on the new side, built while everybody writes.

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};

use super::changes::Index;
use super::sql::quote;
use crate::fleet::unnamed;
use crate::migration::control::{Migration, PlanError};

/// Of the lock that keeps two instances from building at once: the first half of its key.
const LOCK_CLASS: i32 = 0x4356_0000;

/// Sees to it that each is there and valid.
///
/// `CREATE INDEX CONCURRENTLY` can't run in a transaction, so it isn't fenced; it changes no row. It makes nobody wait,
/// and waits itself for every transaction that is older.
pub(super) async fn ensure(
    pool: &PgPool,
    table: &str,
    indexes: &[Index],
    migration: &Migration,
) -> Result<(), PlanError> {
    if indexes.is_empty() {
        return Ok(());
    }
    // Of its own, since the lock is the session's: a build that nobody waits for any more goes on, and so does the lock.
    let mut session = PgConnection::connect_with(&pool.connect_options()).await?;
    let is_mine: bool = unnamed::query_scalar("select pg_try_advisory_lock($1, $2)")
        .bind(LOCK_CLASS)
        .bind(migration.id())
        .fetch_one(&mut session)
        .await?;
    if !is_mine {
        return Err(PlanError::Refused(format!("an index on {table} is being built by another session")));
    }
    for index in indexes {
        build(&mut session, table, index).await?;
    }
    Ok(session.close().await?)
}

async fn build(session: &mut PgConnection, table: &str, index: &Index) -> Result<(), PlanError> {
    // In the table's own schema, where an index always is.
    let found: Option<(bool, bool, String)> = unnamed::query_as(
        "select i.indrelid = t.oid, i.indisvalid and i.indisready, format('%I.%I', n.nspname, c.relname) \
         from pg_class t join pg_class c on c.relnamespace = t.relnamespace and c.relname = $2 \
         join pg_namespace n on n.oid = c.relnamespace join pg_index i on i.indexrelid = c.oid \
         where t.oid = to_regclass($1)",
    )
    .bind(table)
    .bind(&index.name)
    .fetch_optional(&mut *session)
    .await?;
    match found {
        Some((true, true, _)) => return Ok(()),
        Some((false, ..)) => {
            return Err(PlanError::Refused(format!("index {} is another table's", quote(&index.name))));
        }
        Some((true, false, name)) => {
            tracing::info!(index = name, "left over from a build that did not end: dropped and built again");
            session.execute(AssertSqlSafe(format!("drop index concurrently if exists {name}"))).await?;
        }
        None => {}
    }
    let create = index.create(table);
    tracing::info!(create, "building an index");
    session
        .execute(AssertSqlSafe(&*create))
        .await
        .map_err(|error| PlanError::Refused(format!("`{create}` failed: {error}")))?;
    Ok(())
}
