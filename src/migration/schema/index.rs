//! Indexes on the new side, built while others write.
//!
//! `CREATE INDEX CONCURRENTLY` cannot run in a transaction, so it is not fenced; it changes no row. It blocks no writer and
//! waits itself for every older transaction. It runs without `lock_timeout`, because an expired one would leave an invalid
//! index. The transactions that it waits for are reported instead.
//!
//! On a partitioned table it is not possible at all. There each partition gets its own index, which is then attached: see
//! `partitioned_index`.

use std::pin::pin;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool, Row};
use tokio::time::timeout;

use super::index_definition::Index;
use crate::ledger::{WORK, blockers, describe_error, sql_state, unprepared};
use crate::migration::batch::begin;
use crate::migration::catalog::quote;
use crate::migration::coordinator::PlanError;
use crate::migration::phase::Phase;
use crate::migration::runtime::Migration;

/// How often the transactions that a build waits for are reported.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// What exists under an index's name.
pub(super) enum Found {
    /// The described index, valid.
    Same,
    /// An invalid index that a build has left, by its full name.
    Invalid(String),
    Nothing,
}

pub(super) async fn look(
    pool: &PgPool,
    table: &str,
    index: &Index,
    migration: &Migration,
) -> Result<Found, PlanError> {
    let mut tx = begin(pool, &[Phase::Verify, Phase::Ramp, Phase::Switch], migration).await?;
    // An index is always in its table's schema.
    let found: Option<(bool, bool, String, String)> = unprepared::query_as(
        "select i.indrelid = t.oid, i.indisvalid and i.indisready, format('%I.%I', n.nspname, c.relname), \
                case when i.indisunique then 'unique' else '' end \
                    || substring(pg_get_indexdef(i.indexrelid) from ' USING .*') \
         from pg_class t join pg_class c on c.relnamespace = t.relnamespace and c.relname = $2 \
         join pg_namespace n on n.oid = c.relnamespace join pg_index i on i.indexrelid = c.oid \
         where t.oid = to_regclass($1)",
    )
    .bind(table)
    .bind(&index.name)
    .fetch_optional(&mut *tx)
    .await?;
    match found {
        None => Ok(Found::Nothing),
        Some((false, ..)) => Err(PlanError::Refused(format!(
            "index {} belongs to another table; to fix: describe it under another name",
            quote(&index.name)
        ))),
        Some((true, false, name, _)) => Ok(Found::Invalid(name)),
        Some((true, true, name, is)) => match described(&mut tx, table, index).await? {
            Some(wanted) if wanted != is => Err(PlanError::Refused(format!(
                "index {name} exists as `{}` and is described as `{}`; to fix: describe it under another name, or \
                 `drop index concurrently {name}`",
                is.trim(),
                wanted.trim()
            ))),
            _ => Ok(Found::Same),
        },
    }
}

/// The described index as the server writes it, found with an empty temporary table of the same columns. `None` if this
/// role may not create one.
async fn described(tx: &mut PgConnection, table: &str, index: &Index) -> Result<Option<String>, PlanError> {
    let twin = format!("create temp table cutover_twin (like {table}) on commit drop");
    match tx.execute(AssertSqlSafe(twin)).await {
        Err(error) if sql_state(&error).as_deref() == Some("42501") => {
            let error = describe_error(&error);
            tracing::warn!(
                error,
                index = index.name,
                "could not compare the index with its description; using it"
            );
            return Ok(None);
        }
        outcome => outcome?,
    };
    let create = index.create_blocking("pg_temp.cutover_twin");
    tx.execute(AssertSqlSafe(&*create)).await.map_err(|error| failed(&index.create(table), &error))?;
    let is = unprepared::query_scalar(
        "select case when indisunique then 'unique' else '' end \
             || substring(pg_get_indexdef(indexrelid) from ' USING .*') \
         from pg_index where indrelid = 'pg_temp.cutover_twin'::regclass",
    );
    Ok(Some(is.fetch_one(tx).await?))
}

fn failed(statement: &str, error: &sqlx::Error) -> PlanError {
    PlanError::Refused(format!("`{statement}` failed: {}", describe_error(error)))
}

pub(super) async fn build(
    session: &mut PgConnection,
    pool: &PgPool,
    table: &str,
    index: &Index,
    migration: &Migration,
) -> Result<(), PlanError> {
    match look(pool, table, index, migration).await? {
        Found::Same => return Ok(()),
        Found::Invalid(name) => {
            // The server continues a build whose instance has died.
            let mut tx = session.begin_with(WORK).await?;
            let builders = blockers::on_tables(&[table], &["ShareUpdateExclusiveLock"], &mut tx).await?;
            tx.rollback().await?;
            if !builders.is_empty() {
                return Err(PlanError::NotNow(format!(
                    "index {name} is invalid and another session may still be building it: {}",
                    blockers::listed(&builders)
                )));
            }
            tracing::info!(index = name, "dropping the invalid index of a build that did not finish");
            let drop = format!("drop index concurrently if exists {name}");
            run(session, pool, &drop, migration).await?;
        }
        Found::Nothing => {}
    }
    let create = index.create(table);
    tracing::info!(create, "building an index");
    run(session, pool, &create, migration).await
}

/// Runs a statement and reports the transactions that it waits for.
pub(super) async fn run(
    session: &mut PgConnection,
    pool: &PgPool,
    statement: &str,
    migration: &Migration,
) -> Result<(), PlanError> {
    let pid: i32 = session.fetch_one("select pg_backend_pid()").await?.try_get(0)?;
    let mut work = pin!(session.execute(AssertSqlSafe(statement)));
    let outcome = loop {
        if let Ok(outcome) = timeout(REPORT_EVERY, &mut work).await {
            break outcome;
        }
        // A failed look at them must not end the build.
        let others = blockers::of(pool, pid).await.unwrap_or_default();
        let note = match others.is_empty() {
            true => String::new(),
            false => format!(
                "older transactions to end: {}, which block `{statement}`; to unblock: end them",
                blockers::listed(&others)
            ),
        };
        if migration.note(&note) && !note.is_empty() {
            tracing::info!(migration = migration.name(), note);
        }
    };
    migration.note("");
    outcome.map(|_| ()).map_err(|error| failed(statement, &error))
}
