//! Indexes on the new side, built while everybody writes.
//!
//! `CREATE INDEX CONCURRENTLY` can't run in a transaction, so it isn't fenced; it changes no row. It makes nobody wait, and
//! waits itself for every transaction that is older. So it has no `lock_timeout`: one would leave it invalid and begin
//! again. Whom it waits for is said instead.

use std::pin::pin;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};
use tokio::time::timeout;

use super::alter::locked_by;
use super::index_definition::Index;
use crate::ledger::locks;
use crate::ledger::{READ_COMMITTED, sql_state, unprepared};
use crate::migration::batch::begin;
use crate::migration::catalog::quote;
use crate::migration::coordinator::PlanError;
use crate::migration::phase::Phase;
use crate::migration::runtime::Migration;

/// Between looks at whom a build waits for.
const LOOK: Duration = Duration::from_secs(1);
/// What a role's limits are, they are for requests.
const UNLIMITED: &str = "select set_config(name, '0', false) from pg_settings \
    where name in ('statement_timeout', 'lock_timeout', 'transaction_timeout') and setting <> '0'";
/// Behind a pooler others get the session next.
const LIMITED: &str = "reset statement_timeout; reset lock_timeout";

/// What there is by an index's name.
enum Found {
    /// Just that, and valid.
    Same,
    /// What a build has left, by its full name.
    Invalid(String),
    Nothing,
}

/// Sees to it that each is there and valid.
pub(crate) async fn ensure(
    pool: &PgPool,
    table: &str,
    indexes: &[Index],
    migration: &Migration,
) -> Result<(), PlanError> {
    let mut missing = Vec::new();
    for index in indexes {
        if !matches!(look(pool, table, index, migration).await?, Found::Same) {
            missing.push(index);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    // A transaction's lock: behind a pooler a session's would stay with whoever gets the session next. It has no snapshot
    // that the build would wait for.
    let mut keeper = pool.acquire().await?.detach();
    let mut keeper = keeper.begin_with(READ_COMMITTED).await?;
    keeper.execute("set local idle_in_transaction_session_timeout = 0").await?;
    let is_mine: bool = unprepared::query_scalar("select pg_try_advisory_xact_lock($1, $2)")
        .bind(locks::INDEX_BUILD)
        .bind(migration.id())
        .fetch_one(&mut *keeper)
        .await?;
    if !is_mine {
        return Err(PlanError::Refused(format!("an index on {table} is being built by another instance")));
    }
    // Not the pool's any more: it may be at it for hours, and is closed when nobody waits for it.
    let mut session = pool.acquire().await?.detach();
    session.execute(UNLIMITED).await?;
    let mut outcome = Ok(());
    for index in missing {
        outcome = build(&mut session, pool, table, index, migration).await;
        if outcome.is_err() {
            break;
        }
    }
    session.execute(LIMITED).await?;
    outcome
}

async fn look(pool: &PgPool, table: &str, index: &Index, migration: &Migration) -> Result<Found, PlanError> {
    let mut tx = begin(pool, &[Phase::Verify, Phase::Ramp], migration).await?;
    // In the table's own schema, where an index always is.
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
        Some((false, ..)) => {
            Err(PlanError::Refused(format!("index {} is another table's", quote(&index.name))))
        }
        Some((true, false, name, _)) => Ok(Found::Invalid(name)),
        Some((true, true, name, is)) => match described(&mut tx, table, index).await? {
            Some(wanted) if wanted != is => Err(PlanError::Refused(format!(
                "index {name} is there as `{}` and was described as `{}`: drop it, or give one of them another name",
                is.trim(),
                wanted.trim()
            ))),
            _ => Ok(Found::Same),
        },
    }
}

/// The index as the server would write it: it is asked with an empty table of the same columns. `None` where this role
/// may not make one.
async fn described(tx: &mut PgConnection, table: &str, index: &Index) -> Result<Option<String>, PlanError> {
    let twin = format!("create temp table cutover_twin (like {table}) on commit drop");
    match tx.execute(AssertSqlSafe(twin)).await {
        Err(error) if sql_state(&error).as_deref() == Some("42501") => {
            tracing::warn!(%error, index = index.name, "taken as it is: this role can't compare it with its description");
            return Ok(None);
        }
        outcome => outcome?,
    };
    let create = index.create("pg_temp.cutover_twin").replacen(" concurrently", "", 1);
    tx.execute(AssertSqlSafe(&*create)).await.map_err(|error| failed(&index.create(table), &error))?;
    let is = unprepared::query_scalar(
        "select case when indisunique then 'unique' else '' end \
             || substring(pg_get_indexdef(indexrelid) from ' USING .*') \
         from pg_index where indrelid = 'pg_temp.cutover_twin'::regclass",
    );
    Ok(Some(is.fetch_one(tx).await?))
}

fn failed(statement: &str, error: &sqlx::Error) -> PlanError {
    PlanError::Refused(format!("`{statement}` failed: {error}"))
}

async fn build(
    session: &mut PgConnection,
    pool: &PgPool,
    table: &str,
    index: &Index,
    migration: &Migration,
) -> Result<(), PlanError> {
    match look(pool, table, index, migration).await? {
        Found::Same => return Ok(()),
        Found::Invalid(name) => {
            // A build whose instance has died goes on in the server.
            let builders = locked_by(table, Some("ShareUpdateExclusiveLock"), session).await?;
            if !builders.is_empty() {
                return Err(PlanError::Refused(format!(
                    "index {name} is not valid, but may still be built: {}",
                    builders.join(", ")
                )));
            }
            tracing::info!(index = name, "left over from a build that did not end: dropped and built again");
            let drop = format!("drop index concurrently if exists {name}");
            run(session, pool, &drop, migration).await?;
        }
        Found::Nothing => {}
    }
    let create = index.create(table);
    tracing::info!(create, "building an index");
    run(session, pool, &create, migration).await
}

/// Runs a statement and says whom it waits for.
async fn run(
    session: &mut PgConnection,
    pool: &PgPool,
    statement: &str,
    migration: &Migration,
) -> Result<(), PlanError> {
    let pid: i32 = unprepared::query_scalar("select pg_backend_pid()").fetch_one(&mut *session).await?;
    let mut work = pin!(session.execute(AssertSqlSafe(statement)));
    let outcome = loop {
        if let Ok(outcome) = timeout(LOOK, &mut work).await {
            break outcome;
        }
        // Who can't be seen is not worth a build.
        let others = blockers(pool, pid).await.unwrap_or_default();
        let note = match others.is_empty() {
            true => String::new(),
            false => format!("`{statement}` waits for older transactions: {}", others.join(", ")),
        };
        if migration.note(&note) && !note.is_empty() {
            tracing::info!(migration = migration.name(), note);
        }
    };
    migration.note("");
    outcome.map(|_| ()).map_err(|error| failed(statement, &error))
}

/// Whom this backend waits for.
async fn blockers(pool: &PgPool, pid: i32) -> Result<Vec<String>, sqlx::Error> {
    unprepared::query_scalar(
        "select format('pid %s (%s)', pid, coalesce(nullif(application_name, ''), 'unnamed')) \
         from pg_stat_activity where pid = any (pg_blocking_pids($1)) order by xact_start limit 5",
    )
    .bind(pid)
    .fetch_all(pool)
    .await
}
