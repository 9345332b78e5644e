//! Triggers that keep the columns of the key equal, and that others dropped or disabled. What is written meanwhile is in one
//! column only, and the exchange would put the other one in its place.

use sqlx::{AssertSqlSafe, Executor, PgConnection};

use super::builder::Description;
use super::found::{Key, find};
use super::referring::{self, Referring, mirrored};
use crate::ledger::key_mirror::{self, Mirrored};
use crate::ledger::{begin_work, external_writes, guard_triggers, sides, unprepared};
use crate::migration::batch::rows_differ;
use crate::migration::catalog::PlanProblem;
use crate::migration::coordinator::PlanError;
use crate::migration::plan::refusal::refuse;
use crate::migration::plan::unguarded::{FROM_EXPAND, gone_of};

/// How many rows are counted.
const COUNTED: i64 = 1000;

/// The triggers that are gone, of the key's table and of those that refer to it.
pub(super) async fn unguarded(
    plan: &Description,
    migration: i32,
    connection: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let Some((tables, columns)) = columns(plan, migration, &mut *connection).await? else {
        return Ok(Vec::new());
    };
    let id = migration.to_string();
    let [on_rows, ..] = guard_triggers::names(&id);
    let mut problems = Vec::new();
    for (relation, table) in tables.all {
        let gone = guard_triggers::missing(connection, relation, std::slice::from_ref(&on_rows)).await?;
        if !gone.is_empty() {
            let remedy = if tables.is_exchanged { again(&id, &columns) } else { FROM_EXPAND.to_owned() };
            problems.push(gone_of(&table, &gone, "so its columns of the key may differ", remedy));
        }
    }
    Ok(problems)
}

/// What keeps the exchange from being made: triggers that are gone or disabled.
pub(super) async fn before_exchange(
    plan: &Description,
    migration: i32,
    connection: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let mut problems = unguarded(plan, migration, &mut *connection).await?;
    for disabled in external_writes::disabled_guards(&mut *connection, migration).await? {
        let (problem, remedy) = disabled.split_once("; to unblock: ").unwrap_or((&disabled, ""));
        problems.push(PlanProblem::blocking(format!("this waits for {problem}"), remedy));
    }
    Ok(problems)
}

/// Refuses an exchange that would change what the key, or a column that refers to it, holds: a trigger was gone or disabled for a
/// while, and is there again.
pub(super) async fn refuse_differences(
    plan: &Description,
    key: &Key,
    referring: &[Referring],
) -> Result<(), PlanError> {
    let mut tx = begin_work(&plan.outline.pool).await?;
    tx.execute("set local statement_timeout = 0").await?;
    let mut problems = Vec::new();
    for one in mirrored(plan, (&key.table, &key.key_type), referring, key.is_exchanged()) {
        let Mirrored { table, column, target, .. } = &one;
        let differing = one.differing();
        let query = format!("select count(*) from (select from {differing} limit {COUNTED}) as different");
        let found: i64 = unprepared::query_scalar(AssertSqlSafe(query)).fetch_one(&mut *tx).await?;
        let rows = match found {
            0 => continue,
            COUNTED => format!("{found} or more rows of {table} differ"),
            _ => rows_differ(found, &format!(" of {table}")),
        };
        problems.push(PlanProblem::blocking(
            format!(
                "{rows} in {column} and {target}, which takes its place: the trigger that keeps them equal was \
                 disabled for a while"
            ),
            format!("`{}`", one.correction()),
        ));
    }
    tx.rollback().await?;
    refuse(&problems)
}

/// The tables with a trigger, each with its oid, and the columns that the triggers keep equal. `None` before `expand`.
async fn columns(
    plan: &Description,
    migration: i32,
    connection: &mut PgConnection,
) -> Result<Option<(Tables, Vec<Mirrored>)>, sqlx::Error> {
    let is_recorded = sides::find(&mut *connection, migration).await?.is_some();
    let Some(key) = find(plan, Some(migration), &mut *connection).await?.filter(|_| is_recorded) else {
        return Ok(None);
    };
    let mut referring = referring::find(plan, &key, Some(migration), connection).await?;
    // A foreign key that was added later has no second column, and is told as such.
    referring.retain(Referring::has_second);
    let columns = mirrored(plan, (&key.table, &key.key_type), &referring, key.is_exchanged());
    let mut tables = Tables { is_exchanged: key.is_exchanged(), all: vec![(key.relation, key.table)] };
    for one in referring {
        if !tables.all.iter().any(|(relation, _)| *relation == one.relation) {
            tables.all.push((one.relation, one.table));
        }
    }
    Ok(Some((tables, columns)))
}

#[derive(Debug, Default)]
struct Tables {
    is_exchanged: bool,
    all: Vec<(i64, String)>,
}

/// The statements that install the triggers again and correct the rows, when the new column is the key already.
fn again(id: &str, columns: &[Mirrored]) -> String {
    let corrections = columns.iter().map(Mirrored::correction);
    let statements = std::iter::once(key_mirror::install(id, columns)).chain(corrections);
    statements.map(|one| format!("`{one}`")).collect::<Vec<_>>().join(", then ")
}
