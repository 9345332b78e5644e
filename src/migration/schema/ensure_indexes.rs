use sqlx::{Connection, Executor, PgPool};

use super::alter::alter;
use super::index::{Found, build, look, run};
use super::index_definition::Index;
use super::partitioned_index::Tree;
use crate::ledger::{WORK, locks, unprepared};
use crate::migration::batch::begin;
use crate::migration::coordinator::PlanError;
use crate::migration::phase::Phase;
use crate::migration::runtime::Migration;

/// The limits of the role are meant for requests.
macro_rules! limits {
    () => {
        "'statement_timeout', 'lock_timeout', 'transaction_timeout'"
    };
}

/// From version 14 on: how soon the server notices during a statement that the client is gone.
macro_rules! check {
    () => {
        "'client_connection_check_interval'"
    };
}

const UNLIMITED: &str = concat!(
    "select set_config(name, '0', false) from pg_settings where name in (",
    limits!(),
    ") and setting <> '0'"
);
const ENDS_WITH_CLIENT: &str =
    concat!("select set_config(name, '1s', false) from pg_settings where name = ", check!());
/// Behind a pooler another client gets the session next. `reset` would fail for a setting that the server does not have.
const LIMITED: &str = concat!(
    "select set_config(name, reset_val, false) from pg_settings where name in (",
    limits!(),
    ", ",
    check!(),
    ") and setting <> reset_val"
);

/// The keeper of the lock is idle during the build. If its client is gone without a word, the server finds out in half a minute.
const KEEP: &str = "select set_config(name, value, true) from pg_settings join (values \
    ('idle_in_transaction_session_timeout', '0'), ('transaction_timeout', '0'), \
    ('tcp_keepalives_idle', '15'), ('tcp_keepalives_interval', '5'), ('tcp_keepalives_count', '3')) as kept (name, value) using (name)";

/// Builds the indexes that do not exist or are invalid.
pub(crate) async fn ensure_indexes(
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
    // A transaction holds the lock, because behind a pooler a session's lock would stay with the next client. The
    // transaction has no snapshot that the build would wait for, and takes no other lock.
    let mut keeper = pool.acquire().await?.detach();
    let mut keeper = keeper.begin_with(WORK).await?;
    keeper.execute(KEEP).await?;
    let is_mine: bool = unprepared::query_scalar("select pg_try_advisory_xact_lock($1, $2)")
        .bind(locks::INDEX_BUILD)
        .bind(migration.id())
        .fetch_one(&mut *keeper)
        .await?;
    if !is_mine {
        return Err(PlanError::NotNow(format!(
            "another instance builds the indexes of migration {} on {table}",
            migration.name()
        )));
    }
    // Taken out of the pool: a build can take hours, and its session is closed when the work is dropped.
    let mut session = pool.acquire().await?.detach();
    session.execute(UNLIMITED).await?;
    let mut outcome = Ok(());
    let mut tx = session.begin_with(WORK).await?;
    let tree = Tree::load(&mut tx, table).await?;
    tx.rollback().await?;
    for index in missing {
        outcome = match &tree {
            Some(tree) => tree.build(&mut session, pool, index, migration).await,
            None => build(&mut session, pool, table, index, migration).await,
        };
        if outcome.is_err() {
            break;
        }
    }
    session.execute(LIMITED).await?;
    outcome
}

/// Drops an index of the table (both quoted) and blocks no writer. Does nothing if there is none of this name.
///
/// The index of a partitioned table cannot be dropped concurrently. Its lock is requested for a moment only.
pub(crate) async fn drop_index(
    pool: &PgPool,
    table: &str,
    index: &str,
    phase: Phase,
    migration: &Migration,
) -> Result<(), PlanError> {
    let mut tx = begin(pool, &[phase], migration).await?;
    let is_partitioned: Option<bool> =
        unprepared::query_scalar("select relkind = 'I' from pg_class where oid = to_regclass($1)")
            .bind(index)
            .fetch_optional(&mut *tx)
            .await?;
    tx.rollback().await?;
    match is_partitioned {
        None => Ok(()),
        Some(true) => alter(pool, table, migration, phase, &format!("drop index if exists {index}")).await,
        Some(false) => {
            run_unfenced(pool, &format!("drop index concurrently if exists {index}"), migration).await
        }
    }
}

/// Runs a statement of any length that changes no row and blocks no writer, outside of the fence: the way back does not
/// wait for it. From version 14 on the server ends it within a second after this future is dropped.
pub(crate) async fn run_unfenced(
    pool: &PgPool,
    statement: &str,
    migration: &Migration,
) -> Result<(), PlanError> {
    let mut session = pool.acquire().await?.detach();
    session.execute(UNLIMITED).await?;
    session.execute(ENDS_WITH_CLIENT).await?;
    let outcome = run(&mut session, pool, statement, migration).await;
    session.execute(LIMITED).await?;
    outcome
}
