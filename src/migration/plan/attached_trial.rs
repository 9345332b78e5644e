//! Whether the new side takes what is attached to the old one, tried on empty twins of the tables and on mapped rows.
//!
//! # The hazard
//!
//! A check compares a text, and the new column is a number. A unique value is mapped to one that another row has, too. Untried,
//! this shows in `verify`, and holds `ramp`.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use super::description::{Description, Shape, add_columns};
use super::refusal::try_and_undo;
use crate::ledger::{describe_error, is_refusal, sql_state, unprepared};
use crate::migration::catalog::{
    Attached, Attachments, OTHER_TWIN, PlanProblem, Trial, refers_to_none, twin,
};

/// What says nothing about the new side: rights, and objects that the trial's session has or lacks.
const OF_THE_TRIAL: [&str; 5] = ["42501", "42P01", "42P07", "42710", "42939"];
const LIMIT: &str = "set local lock_timeout = '200ms'; ";
/// How long the driver uses one result, so that a wait fills no catalog with temporary tables.
const TRY_EVERY: Duration = Duration::from_secs(60);

/// Why the server refuses to attach each of these to the new side; `None` if it does not, or if that cannot be tried.
pub(super) type Refusals = Vec<Option<String>>;

/// The latest trial.
#[derive(Debug, Default)]
pub(super) struct RecentTrial(Mutex<Option<(Instant, Vec<Attached>, Refusals)>>);

impl RecentTrial {
    pub(super) async fn refusals(
        &self,
        plan: &Description,
        found: &[Attached],
        tx: &mut PgConnection,
    ) -> Result<Refusals, sqlx::Error> {
        if let Some(known) = self.known(found) {
            return Ok(known);
        }
        let refusals = refusals(plan, found, tx).await?;
        let known = (Instant::now(), found.to_vec(), refusals.clone());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
        Ok(refusals)
    }

    fn known(&self, found: &[Attached]) -> Option<Refusals> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, tried, refusals) = known.as_ref()?;
        (tried == found && at.elapsed() < TRY_EVERY).then(|| refusals.clone())
    }
}

async fn refusals(
    plan: &Description,
    found: &[Attached],
    tx: &mut PgConnection,
) -> Result<Refusals, sqlx::Error> {
    let partitioned = match found.iter().any(|one| one.trial.is_some()) {
        true => partitioned(plan.new_table(), tx).await?,
        false => None,
    };
    let Some(partitioned) = partitioned else { return Ok(vec![None; found.len()]) };
    // A foreign key needs the unique indexes that the new side will have.
    let mut unique: Vec<String> = plan
        .changes
        .indexes
        .iter()
        .filter(|index| index.is_unique)
        .map(|index| index.create_blocking(&twin(plan.new_table())))
        .collect();
    let mut refusals = Vec::new();
    for one in found {
        let Some(trial) = &one.trial else {
            refusals.push(None);
            continue;
        };
        let twins = twins(plan, trial, &partitioned, &unique);
        let refusal = refusal(&twins, &trial.statement, tx).await?;
        if refusal.is_none() && trial.statement.starts_with("create unique index") {
            unique.push(trial.statement.clone());
        }
        refusals.push(refusal);
    }
    Ok(refusals)
}

/// The partition key of a table as a clause; empty if it has none. `None`: there is no such table.
pub(super) async fn partitioned(table: &str, tx: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
    unprepared::query_scalar(
        "select coalesce(' partition by ' || pg_get_partkeydef(c.oid), '') from pg_class c where c.oid = to_regclass($1)",
    )
    .bind(table)
    .fetch_optional(tx)
    .await
}

/// The statements that make the twins. That of the other table comes first: the name of the first twin hides a table.
fn twins(plan: &Description, trial: &Trial, partitioned: &str, unique: &[String]) -> String {
    let (table, twin) = (plan.new_table(), twin(plan.new_table()));
    let other = trial.other.as_ref();
    let mut statements = LIMIT.to_owned();
    if let Some(other) = other {
        statements += &format!("create temporary table {OTHER_TWIN} (like {other} including indexes); ");
    }
    let indexes = if other.is_some() { " including indexes" } else { "" };
    statements += &format!("create temporary table {twin} (like {table}{indexes}){partitioned}; ");
    if plan.moves_columns() {
        statements += &format!("alter table {twin}{}; ", add_columns(&plan.added()));
    }
    if other.is_some() {
        statements += &unique.join("; ");
    }
    statements
}

async fn refusal(twins: &str, statement: &str, tx: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
    let mut attempt = tx.begin().await?;
    let outcome = match attempt.execute(AssertSqlSafe(twins)).await {
        Ok(_) => attempt.execute(AssertSqlSafe(statement)).await.map(|_| ()),
        // Then nothing can be tried.
        Err(sqlx::Error::Database(_)) => Ok(()),
        Err(error) => Err(error),
    };
    attempt.rollback().await?;
    match outcome {
        Err(error) if is_refusal(&error) => {
            let is_of_trial = sql_state(&error).is_some_and(|state| OF_THE_TRIAL.contains(&&*state));
            Ok((!is_of_trial).then(|| describe_error(&error)))
        }
        Err(sqlx::Error::Database(_)) | Ok(()) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What mapped rows violate of what the new side will have. `sampled`: a temporary table with columns of the new side, which is
/// renamed. A report never holds values.
pub(super) async fn violated(
    plan: &Description,
    found: &[Attached],
    sampled: &str,
    tx: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let twin = twin(plan.new_table());
    let name = twin.trim_start_matches("pg_temp.");
    // Before the name means the sample.
    let new = match plan.moves_columns() {
        true => None,
        false => Attachments::read(tx, plan.new_table()).await?,
    };
    tx.execute(AssertSqlSafe(format!("alter table {sampled} rename to {name}"))).await?;
    let mut problems = Vec::new();
    for one in found {
        let Some(trial) = &one.trial else { continue };
        let is_violated = match (&trial.dangling, &trial.other) {
            (Some(dangling), _) => is_true(dangling, tx).await?,
            (None, None) => violates(&trial.statement, tx).await?,
            (None, Some(_)) => false,
        };
        if is_violated {
            problems.push(PlanProblem::warning(
                format!("once they are mapped, sampled rows violate the counterpart of {}", one.what),
                format!("correct the mapping or these rows, or use `.without({:?})`; otherwise `ramp` is not entered", one.name),
            ));
        }
    }
    for key in new.iter().flat_map(|new| &new.constraints) {
        let Some(query) = refers_to_none(&twin, key) else { continue };
        if is_true(&query, tx).await? {
            problems.push(PlanProblem::warning(
                format!(
                    "once they are mapped, sampled rows violate constraint {:?} of {} ({})",
                    key.name, key.table, key.definition
                ),
                "correct the mapping or these rows, or add the rows that they refer to; otherwise the copy sets them aside and \
                 `verify` is not entered",
            ));
        }
    }
    for index in plan.changes.indexes.iter().filter(|index| index.is_unique) {
        if violates(&index.create_blocking(&twin), tx).await? {
            problems.push(PlanProblem::warning(
                format!("once they are mapped, sampled rows have equal values in unique index {:?} (`{}`)", index.name, index.on),
                "correct the mapping or these rows, or the index in the plan; otherwise `verify` does not end",
            ));
        }
    }
    if let Shape::Columns { not_null: true, .. } = &plan.shape {
        for (column, _) in plan.added() {
            if is_true(&format!("select exists (select from {twin} where {column} is null)"), tx).await? {
                let table = plan.new_table();
                problems.push(PlanProblem::warning(
                    format!("sampled rows of {table} are mapped to a null, and column {column} is to become NOT NULL"),
                    "correct the mapping or these rows, or leave `.not_null()` out; otherwise `contract` does not end",
                ));
            }
        }
    }
    Ok(problems)
}

/// Whether the rows keep a constraint or an index from being added.
async fn violates(statement: &str, tx: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let error = try_and_undo(statement, tx).await?;
    Ok(error.as_ref().and_then(sql_state).is_some_and(|state| state.starts_with("23")))
}

async fn is_true(query: &str, tx: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let mut attempt = tx.begin().await?;
    let outcome = unprepared::query_scalar(AssertSqlSafe(query)).fetch_one(&mut *attempt).await;
    attempt.rollback().await?;
    match outcome {
        // It may not read the other table, or it may not be in time.
        Err(sqlx::Error::Database(_)) => Ok(false),
        outcome => outcome,
    }
}
