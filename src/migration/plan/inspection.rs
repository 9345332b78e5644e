//! What a plan finds in the database: every problem of it.

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use super::attached::interference;
use super::attached_trial::partitioned;
use super::description::{Description, Shape, add_columns};
use super::key_remedy::unusable_key;
use super::readers::readers_so_far;
use super::refusal::{missing, no_temporary_tables, not_computed, of_mapping, try_and_undo};
use super::replication::of_replication;
use super::rights::attached_problems;
use super::round_trip::try_mappings;
use super::statements::of_statements;
use super::two_tables::of_tables;
use crate::ledger::{begin_work, describe_error, is_refusal, sides, unprepared};
use crate::migration::batch::{Keyset, MappingCode, keyset};
use crate::migration::catalog::{
    CopyTrial, NewColumnPlan, PlanProblem, TableFacts, TypeFacts, fit_name, insert_without, look_up_type,
    more_columns, new_column_problems, old_column_problems, outdated_order, privilege_problems, quote,
    rename_columns, table_problems, takes_over, try_copy, unquote,
};
use crate::migration::coordinator::PlanError;
use crate::migration::schema::Index;

/// Every problem of the plan, found in one transaction that is rolled back. `migration` is known once the migration is
/// in the ledger.
pub(crate) async fn problems(
    plan: &Description,
    migration: Option<i32>,
    connection: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let mut tx = connection.begin().await?;
    // What is tried here must neither wait for others for long nor make them wait.
    tx.execute(
        "set local lock_timeout = '200ms'; set local statement_timeout = '10s'; \
         set local standard_conforming_strings = on",
    )
    .await?;
    let known = sides::find(&mut tx, migration).await?;
    let Some(facts) = TableFacts::read(&mut tx, plan.old_table()).await? else {
        let missing = missing(plan.old_table(), &mut tx).await?;
        tx.rollback().await?;
        return Ok(vec![missing]);
    };
    let mut problems = table_problems(plan.old_table(), &facts, plan.has_guard);
    let cannot_try = no_temporary_tables(&mut tx).await?;
    let ends_here = !facts.is_table() || cannot_try.is_some();
    problems.extend(cannot_try);
    if ends_here {
        tx.rollback().await?;
        return Ok(problems);
    }
    problems.extend(interference(plan, &facts));
    problems.extend(claimed_by_others(plan, migration, &mut tx).await?);
    let key = match keyset::find(&mut tx, plan.old_table(), &plan.outline.key).await? {
        Ok(key) => {
            problems.extend(outdated_order(&mut tx, plan.old_table(), &key.plain_names()).await?);
            Some(key)
        }
        Err(reasons) => {
            problems.push(unusable_key(&mut tx, plan.old_table(), &plan.outline.key, &reasons).await?);
            None
        }
    };
    let may_use_new = plan.uses_existing || known.as_ref().is_some_and(|known| known.new.made);
    match plan.moves_columns() {
        true => {
            problems.extend(of_columns(plan, &facts, may_use_new, &mut tx).await?);
            problems.extend(of_replication(plan, false, &mut tx).await?);
            problems.extend(readers_so_far(plan, &mut tx).await?);
            let attached = attached_problems(plan, &mut problems, &mut tx).await?;
            let is_refused = problems.iter().any(|problem| problem.is_blocking);
            if let (false, Some(key)) = (is_refused, &key) {
                problems.extend(triggers(plan, key, &facts, &mut tx).await?);
                problems.extend(try_mappings(plan, &facts, None, (key, &attached), &mut tx).await?);
            }
        }
        false => problems.extend(of_tables(plan, &facts, key.as_ref(), may_use_new, &mut tx).await?),
    }
    if !problems.iter().any(|problem| problem.is_blocking) {
        problems.extend(of_indexes(plan, &mut tx).await?);
    }
    problems.extend(of_statements(plan, &mut tx).await?);
    tx.rollback().await?;
    Ok(problems)
}

/// Why a database without the old side may not have been created in the new shape: the plan takes over a new side that
/// it did not make, and that new side holds rows. Then the old side's name may be a mistake.
pub(crate) async fn new_shape_doubt(plan: &Description) -> Result<Option<PlanProblem>, sqlx::Error> {
    if !plan.uses_existing {
        return Ok(None);
    }
    let mut tx = begin_work(&plan.outline.pool).await?;
    let Some(facts) = TableFacts::read(&mut tx, plan.new_table()).await? else { return Ok(None) };
    // A policy that hides rows is an error.
    tx.execute("set local row_security = off").await?;
    let query = format!("select exists (select from {})", plan.new_table());
    let has_rows = match unprepared::query_scalar(AssertSqlSafe(query)).fetch_one(&mut *tx).await {
        Err(sqlx::Error::Database(_)) => true,
        answer => answer?,
    };
    tx.rollback().await?;
    let old = plan.old_columns().into_iter().find(|old| facts.column(old).is_none());
    Ok(has_rows.then(|| match (old, plan.new_columns().first()) {
        (Some(old), Some(new)) if plan.moves_columns() => takes_over(plan.old_table(), &old, new, &facts),
        _ => PlanProblem::blocking(
            format!(
                "table {} does not exist, and the plan takes over table {} (`use_existing_table`), which holds rows, so \
                 the name of the old table may be misspelt",
                plan.old_table(),
                plan.new_table()
            ),
            "correct the old table's name in the plan",
        ),
    }))
}

/// Why an index cannot be built, tried on an empty table of the same columns and partition key.
async fn of_indexes(plan: &Description, tx: &mut PgConnection) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let mut problems = Vec::new();
    let table = plan.new_table();
    if plan.changes.indexes.is_empty() {
        return Ok(problems);
    }
    // The new table may not exist yet.
    let Some(partitioned) = partitioned(table, tx).await? else { return Ok(problems) };
    for index in &plan.changes.indexes {
        if let Some(problem) = name_in_use(table, index, tx).await? {
            problems.push(problem);
            continue;
        }
        let mut statement = format!("create temporary table cutover_indexed (like {table}){partitioned}; ");
        if plan.moves_columns() {
            statement += &format!("alter table cutover_indexed{}; ", add_columns(&plan.added()));
        }
        statement += &index.create_blocking("pg_temp.cutover_indexed");
        match try_and_undo(&statement, tx).await? {
            None => {}
            Some(error) if is_refusal(&error) => problems.push(PlanProblem::blocking(
                format!(
                    "index {:?} on {table} (`{}`) cannot be built: {}",
                    index.name,
                    index.on,
                    describe_error(&error)
                ),
                "correct its description in the plan",
            )),
            Some(error) => return Err(error),
        }
    }
    Ok(problems)
}

/// Another table, index, view or sequence of the schema has the index's name.
async fn name_in_use(
    table: &str,
    index: &Index,
    tx: &mut PgConnection,
) -> Result<Option<PlanProblem>, sqlx::Error> {
    let found: Option<String> = unprepared::query_scalar(
        "select c.oid::regclass::text from pg_class t join pg_class c on c.relnamespace = t.relnamespace and c.relname = $2 \
         where t.oid = to_regclass($1) and not exists (select from pg_index where indexrelid = c.oid and indrelid = t.oid)",
    )
    .bind(table)
    .bind(&index.name)
    .fetch_optional(tx)
    .await?;
    Ok(found.map(|found| {
        PlanProblem::blocking(
            format!("index {:?} on {table} cannot be built, because {found} has its name", index.name),
            format!(
                "give it another name in the plan: `.index({:?}, {:?})`",
                fit_name(format!("{}_2", index.name)),
                index.on
            ),
        )
    }))
}

/// Other migrations of this database that move the same table or column, also those of other fleets.
async fn claimed_by_others(
    plan: &Description,
    migration: Option<i32>,
    tx: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let each = |table, columns: Vec<String>| match columns.is_empty() {
        true => vec![(table, None)],
        false => columns.into_iter().map(|column| (table, Some(column))).collect(),
    };
    let sides =
        [each(plan.old_table(), plan.old_columns()), each(plan.new_table(), plan.new_columns())].concat();
    let mut problems = Vec::new();
    for (table, column) in sides {
        let what = column.as_ref().map_or_else(|| table.to_owned(), |column| format!("{table}.{column}"));
        for other in sides::other_users(tx, migration, table, column.as_deref()).await? {
            let sides::OtherUser { fleet, name, phase, side, .. } = other;
            problems.push(PlanProblem::blocking(
                format!("{what} is the {side} side of migration {fleet}/{name}, which is in `{phase}`"),
                format!(
                    "finish that migration first, or end it in `off` with `cutover abandon {fleet}/{name}`; services that \
                     share a table share one fleet (`FleetOptions::name`)"
                ),
            ));
        }
    }
    Ok(problems)
}

async fn of_columns(
    plan: &Description,
    facts: &TableFacts,
    may_use_new: bool,
    tx: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let (table, added, old) = (plan.old_table(), plan.added(), plan.old_columns());
    let mut problems = Vec::new();
    for column in &old {
        problems.extend(old_column_problems(table, column, facts));
    }
    if let Some(first) = old.first() {
        for column in plan.new_columns() {
            problems.extend(privilege_problems(table, first, &column, facts));
        }
    }
    let new = plan.new_columns();
    let added_now = new.iter().filter(|name| facts.column(name).is_none()).count();
    if let Some(problem) = more_columns(tx, table, added_now).await? {
        problems.push(problem);
        return Ok(problems);
    }
    problems.extend(loses_not_null(plan, facts));
    let mut are_types = true;
    for ((quoted, sql_type), name) in added.iter().zip(plan.new_columns()) {
        let (found, problem) = type_of_new(table, quoted, sql_type, facts, tx).await?;
        are_types &= found.is_some();
        problems.extend(problem);
        let described =
            NewColumnPlan { table, name: &name, sql_type: found.as_deref(), may_use: may_use_new };
        problems.extend(new_column_problems(&described, facts));
    }
    if !are_types || old.iter().any(|column| facts.column(column).is_none()) {
        return Ok(problems);
    }
    let sides = &plan.outline.sides;
    for (field, mapping) in [("forward", &sides.forward), ("backward", &sides.backward)] {
        // If an old column itself is generated, another problem says what to do.
        let is_generated = |column: &String| facts.column(column).is_some_and(|column| column.is_generated);
        let is_guarded = plan.has_guard && field == "forward" && !old.iter().any(is_generated);
        problems.extend(of_mapping(field, table, &added, &mapping.code, is_guarded, tx).await?);
    }
    let is_refused = problems.iter().any(|problem| problem.is_blocking);
    if !is_refused && let Some(problem) = insert_without(tx, table, facts, &old).await? {
        problems.push(problem);
    }
    Ok(problems)
}

/// An insert may leave the old column out if it has a default, so nothing else names its `NOT NULL`.
fn loses_not_null(plan: &Description, facts: &TableFacts) -> Option<PlanProblem> {
    let is_kept = matches!(plan.shape, Shape::Columns { not_null: true, .. })
        || plan.changes.waived.iter().any(|name| name == "not null");
    let new = plan.new_columns();
    let lacks = new.iter().any(|name| facts.column(name).is_none_or(|column| !column.not_null));
    let old = plan.old_columns();
    let old = old.iter().find(|name| facts.column(name).is_some_and(|column| column.not_null))?;
    (lacks && !is_kept).then(|| {
        PlanProblem::warning(
            format!(
                "column {} of {} is NOT NULL, and the new side would not be",
                quote(old),
                plan.old_table()
            ),
            "use `.not_null()`; or `.without(\"not null\")`, if the new side may hold nulls",
        )
    })
}

/// The name that the server gives to the type of a new column, and the problem of adding it.
async fn type_of_new(
    table: &str,
    column: &str,
    sql_type: &str,
    facts: &TableFacts,
    tx: &mut PgConnection,
) -> Result<(Option<String>, Option<PlanProblem>), sqlx::Error> {
    let found = match look_up_type(tx, sql_type).await {
        Ok(found) => found,
        Err(error) if is_refusal(&error) => {
            return Ok((None, Some(not_computed(&format!("type `{sql_type}` of the new column"), &error))));
        }
        Err(error) => return Err(error),
    };
    // It would block readers and writers for as long as the rewrite takes, and older snapshots would see an empty
    // table.
    let rewrites = found.rewrites && facts.column(&unquote(column)).is_none();
    let problem = rewrites.then(|| {
        PlanProblem::blocking(
            format!(
                "adding column {column} of type {} would rewrite {table}, because the type is a domain with a constraint or \
                 with a default that is computed for each row",
                found.name
            ),
            without_domain(table, column, &found),
        )
    });
    Ok((Some(found.name), problem))
}

/// What gives a column (quoted) the meaning of a domain without its type.
fn without_domain(table: &str, column: &str, found: &TypeFacts) -> String {
    let value = |name: &str| (name == "VALUE").then(|| column.to_owned());
    let checks = found.checks.iter();
    let mut statements: Vec<String> = checks
        .map(|check| format!("`alter table {table} add {} not valid`", rename_columns(check, value)))
        .collect();
    if let Some(default) = &found.default {
        statements.push(format!("`alter table {table} alter column {column} set default {default}`"));
    }
    let mut remedy = format!("describe it with type {}", found.base);
    if !statements.is_empty() {
        remedy += &format!(" and, each as `.expand_sql(…)`: {}", statements.join(", "));
    }
    if found.not_null {
        remedy += "; and use `.not_null()`";
    }
    remedy
}

/// What the table's own triggers do to the rows that a copy of a column writes.
async fn triggers(
    plan: &Description,
    key: &Keyset,
    facts: &TableFacts,
    tx: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    if !plan.moves_columns() {
        return Ok(Vec::new());
    }
    let values = match &plan.outline.sides.forward.code {
        MappingCode::Sql(expressions) => Some(&**expressions),
        MappingCode::Rust(_) => None,
    };
    let trial = CopyTrial {
        table: plan.old_table(),
        key: &key.plain_names(),
        new: &plan.added(),
        values,
        triggers: plan.changes.triggers,
    };
    try_copy(tx, &trial, facts).await
}

/// The same right before the copy: a trigger may have been added since `expand`.
pub(crate) async fn triggers_now(plan: &Description) -> Result<Vec<PlanProblem>, PlanError> {
    let mut tx = begin_work(&plan.outline.pool).await?;
    let mut found = Vec::new();
    if let (Some(facts), Ok(key)) = (
        TableFacts::read(&mut tx, plan.old_table()).await?,
        keyset::find(&mut tx, plan.old_table(), &plan.outline.key).await?,
    ) {
        found = triggers(plan, &key, &facts, &mut tx).await?;
    }
    tx.rollback().await?;
    Ok(found)
}
