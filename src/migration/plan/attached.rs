//! What is attached to the old side: what the new side lacks of it, and how the library carries it over.

use sqlx::{AssertSqlSafe, Executor, PgConnection};

use super::attached_trial::RecentTrial;
use super::before_work::{elsewhere, renamed};
use super::description::Description;
use super::refusal::refuse;
use crate::ledger::plans::is_same_table;
use crate::ledger::{describe_error, guard_looks, is_refusal, sides, unprepared};
use crate::migration::batch::{MappingCode, begin, keyset};
use crate::migration::catalog::{
    Attached, Attachments, Counterpart, MovedColumn, PlanProblem, ROW_WORK_SETTINGS, Step, TableFacts,
    actions_on_old, hierarchy_problems, identities, identities_over, late_triggers, missing,
    missing_defaults, old_column, quote, rules, unquote,
};
use crate::migration::coordinator::PlanError;
use crate::migration::phase::Phase;
use crate::migration::runtime::Migration;
use crate::migration::schema::{Index, NO_LIMIT, alter_all, ensure_indexes};

/// What has to be changed about the tables before the next step forward from this phase.
pub(crate) async fn before_step(
    plan: &Description,
    phase: Phase,
    migration: i32,
    recent: &RecentTrial,
    connection: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    if !(Phase::Expand..=Phase::Switch).contains(&phase) {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    if let Some(recorded) = sides::find(connection, migration).await? {
        // The step to `retire` is the way out if the old side is gone.
        let needs_old = phase < Phase::Switch;
        found.extend(elsewhere(plan, &recorded, needs_old));
        found.extend(renamed(plan, &recorded, needs_old));
    }
    if let Some(facts) = TableFacts::read(connection, plan.old_table()).await? {
        found.extend(interference(plan, &facts));
        found.extend(hierarchy_problems(plan.old_table(), &facts, plan.has_guard));
        for column in plan.old_columns() {
            found.extend(facts.column(&column).into_iter().flat_map(|one| old_column(plan.old_table(), one)));
            found.extend(actions_on_old(plan.old_table(), &column, &facts));
        }
    }
    // Before `switch` another scan is needed then.
    if plan.has_guard
        && phase == Phase::Switch
        && let Some((what, at)) = guard_looks::unseen_writes(connection, migration).await?
    {
        found.push(PlanProblem::blocking(
            format!("rows may have been written past the guard trigger: at {at} UTC, {what}"),
            "go back to `verify`, where a scan compares all rows, and forward again",
        ));
    }
    if phase == Phase::Verify {
        let lacking = lacking(plan, Some(recent), connection).await?;
        found.extend(lacking.into_iter().map(|(_, problem)| problem));
    }
    Ok(found)
}

/// What others have made of the old table that keeps writes from its rows, or from the guard trigger. It can be made at any
/// time.
pub(crate) fn interference(plan: &Description, facts: &TableFacts) -> Vec<PlanProblem> {
    let table = plan.old_table();
    if !plan.moves_columns() {
        return rules(table, facts, &["INSERT", "UPDATE", "DELETE"]);
    }
    let mut found = rules(table, facts, &["UPDATE"]);
    if plan.has_guard {
        found.extend(late_triggers(facts));
    }
    found
}

/// What the new side lacks, each as a warning. `recent`: where to look first for what the server refuses to attach.
pub(crate) async fn lacking(
    plan: &Description,
    recent: Option<&RecentTrial>,
    connection: &mut PgConnection,
) -> Result<Vec<(Attached, PlanProblem)>, sqlx::Error> {
    let (old_table, new_table) = (plan.old_table(), plan.new_table());
    let Some(old) = Attachments::read(connection, old_table).await? else { return Ok(Vec::new()) };
    let other = match old_table == new_table {
        true => None,
        false => match Attachments::read(connection, new_table).await? {
            None => return Ok(Vec::new()),
            found => found,
        },
    };
    let columns = counterparts(plan, connection).await?;
    let mut unmatched = plan.old_columns();
    unmatched.retain(|column| !columns.iter().any(|(old, _)| old == column));
    let moving = plan.old_columns();
    let sides =
        Counterpart { old_table, new_table, columns: &columns, unmatched: &unmatched, moving: &moving };
    let mut found = missing(&sides, &old, other.as_ref().unwrap_or(&old));
    found.extend(identities(&identities_over(connection, old_table, &moving).await?));
    found.extend(missing_defaults(connection, [old_table, new_table], &moved(plan, &columns)).await?);
    found.retain(|attached| !plan.changes.waived.contains(&attached.name));
    let refusals = match recent {
        Some(recent) => recent.refusals(plan, &found, connection).await?,
        None => vec![None; found.len()],
    };
    let all = found.into_iter().zip(refusals);
    Ok(all.map(|(attached, refusal)| (attached.clone(), problem(plan, &attached, refusal))).collect())
}

/// The same columns with what computes the new one from the old one.
fn moved<'a>(plan: &'a Description, columns: &'a [(String, String)]) -> Vec<MovedColumn<'a>> {
    let forward = &plan.outline.sides.forward;
    let mut all = Vec::new();
    for (old, new) in columns {
        let expression = match &forward.code {
            MappingCode::Sql(expressions) => {
                let number = forward.columns.iter().position(|column| unquote(column) == *new);
                // The key of a table is not mapped.
                Some(number.and_then(|number| expressions.get(number)).map_or(&**old, String::as_str))
            }
            MappingCode::Rust(_) => None,
        };
        all.push(MovedColumn { old, new, forward: expression });
    }
    all
}

/// Columns of the old side, each with the column of the new side that holds the same thing.
async fn counterparts(
    plan: &Description,
    connection: &mut PgConnection,
) -> Result<Vec<(String, String)>, sqlx::Error> {
    if plan.moves_columns()
        && let ([old], [new]) = (&*plan.old_columns(), &*plan.new_columns())
    {
        return Ok(vec![(old.clone(), new.clone())]);
    }
    let key = keyset::find(connection, plan.old_table(), &plan.outline.key).await?;
    let key = key.map(|key| key.plain_names()).unwrap_or_default();
    let mut columns: Vec<(String, String)> = match plan.moves_columns() {
        true => Vec::new(),
        false => key.into_iter().map(|name| (name.clone(), name)).collect(),
    };
    let forward = &plan.outline.sides.forward;
    if let MappingCode::Sql(expressions) = &forward.code {
        columns.extend(expressions.iter().zip(&forward.columns).filter_map(|(expression, column)| {
            let name = unquote(expression);
            let is_bare = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            match **expression == quote(&name) {
                true => Some((name, unquote(column))),
                false if is_bare => Some((name.to_lowercase(), unquote(column))),
                false => None,
            }
        }));
    }
    if plan.moves_columns() {
        // A mapping may also use columns that do not move.
        let old = plan.old_columns();
        columns.retain(|(name, _)| old.contains(name));
    }
    Ok(columns)
}

/// `refusal`: why the server refuses to attach it to the new side.
fn problem(plan: &Description, attached: &Attached, refusal: Option<String>) -> PlanProblem {
    if let Some(refusal) = refusal {
        return PlanProblem::warning(
            format!(
                "the new side has no counterpart of {}, which cannot be carried over: {refusal}",
                attached.what
            ),
            format!(
                "create a counterpart of your own, if one is needed, and use `.without({:?})`",
                attached.name
            ),
        );
    }
    let by_library = plan.changes.carries_over && attached.is_automatic && !attached.steps.is_empty();
    let statements: Vec<String> =
        attached.steps.iter().map(|step| format!("`{}`", step.sql(plan.new_table()))).collect();
    let waive = format!("`.without({:?})` if the new side does not need it", attached.name);
    let remedy = match (by_library, statements.is_empty()) {
        (true, _) => {
            format!("wait until `.carry_over()` has run {}; or use {waive}", statements.join(", then "))
        }
        (false, true) => format!(
            "create its counterpart, if one is needed, and use {waive}; no statement can be derived, because no column of \
             the new side replaces its columns"
        ),
        (false, false) => {
            let carry = if attached.is_automatic { "use `.carry_over()`, or " } else { "" };
            format!("run {}; or {carry}use {waive}", statements.join(", then "))
        }
    };
    PlanProblem {
        by_library,
        ..PlanProblem::warning(format!("the new side has no counterpart of {}", attached.what), remedy)
    }
}

/// Gives the new side what it lacks, as far as the library may.
pub(crate) async fn carry_over(plan: &Description, migration: &Migration) -> Result<(), PlanError> {
    let pool = &plan.outline.pool;
    let mut tx = begin(pool, &[Phase::Verify], migration).await?;
    let found = lacking(plan, None, &mut tx).await?;
    tx.rollback().await?;
    let mut problems = Vec::new();
    for (attached, _) in found.into_iter().filter(|(_, problem)| problem.by_library) {
        // One that fails must not keep the others from being carried over.
        match carry(plan, &attached, migration).await {
            Ok(()) => tracing::info!(
                migration = migration.name(),
                attached = attached.what,
                "carried over what is attached to the old side"
            ),
            Err(PlanError::Refused(reason)) => {
                let what = format!("{} cannot be carried over: {reason}", attached.what);
                let remedy = format!(
                    "correct that, add a counterpart of your own, or use `.without({:?})`",
                    attached.name
                );
                problems.push(PlanProblem::blocking(what, remedy));
            }
            Err(error) => return Err(error),
        }
    }
    refuse(&problems)
}

async fn carry(plan: &Description, attached: &Attached, migration: &Migration) -> Result<(), PlanError> {
    let (pool, table) = (&plan.outline.pool, plan.new_table());
    if let Some(violated) = &attached.violated {
        let mut tx = begin(pool, &[Phase::Verify], migration).await?;
        tx.execute(AssertSqlSafe(format!("{}set local statement_timeout = 0", *ROW_WORK_SETTINGS))).await?;
        let violated = unprepared::query_scalar(AssertSqlSafe(violated.clone())).fetch_one(&mut *tx).await;
        tx.rollback().await?;
        match violated {
            Ok(false) => {}
            Ok(true) => {
                return Err(PlanError::Refused(
                    "rows of the new side violate it, and the server would refuse to write them".to_owned(),
                ));
            }
            // Its expression may not fit the type of the new column.
            Err(error) if is_refusal(&error) => return Err(PlanError::Refused(describe_error(&error))),
            Err(error) => return Err(error.into()),
        }
    }
    let other = attached.other_table.as_deref().filter(|other| !is_same_table(other, table));
    let tables: Vec<&str> = [table].into_iter().chain(other).collect();
    for step in &attached.steps {
        match step {
            Step::Index { name, is_unique, on } => {
                ensure_indexes(pool, table, &[Index::new(name, *is_unique, on)], migration).await?;
            }
            Step::Statement(statement) => {
                let statement = format!("{NO_LIMIT}{statement}");
                alter_all(pool, &tables, migration, Phase::Verify, &statement).await?;
            }
        }
    }
    Ok(())
}
