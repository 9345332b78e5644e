//! What was possible before `expand`, and what others may have made impossible since. It is tried again right before each move
//! forward, with the role, the settings and the connections that the service has.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool, PgTransaction};
use tokio::time::timeout;

use super::before_work::{hidden, moved};
use super::description::{Description, Shape};
use super::readers::readers;
use super::refusal::missing;
use super::replication;
use super::unguarded::unguarded;
use crate::ledger::sides::{self, SideRow};
use crate::ledger::{begin_work, describe_error, unprepared};
use crate::migration::batch::{MappingCode, keyset};
use crate::migration::catalog::{
    NewRowTrial, PlanProblem, TableFacts, WriteTrial, losing_rules, new_table_now, not_owner,
    privilege_problems, refers_to_old, row_security, split_table, table_privilege_problems, unquote,
};
use crate::migration::phase::Phase;

/// How long a trial may take, connection included. The driver's step has to end within its lease.
const LIMIT: Duration = Duration::from_secs(3);
const LIMITS: &str = "set local lock_timeout = '200ms'; set local statement_timeout = '2s'; \
    set local standard_conforming_strings = on";

/// What holds the next move forward from this phase. Without `is_move` nothing is written in a trial.
pub(super) async fn before_move(
    plan: &Description,
    phase: Phase,
    migration: i32,
    is_move: bool,
) -> Vec<PlanProblem> {
    if !(Phase::Expand..=Phase::Switch).contains(&phase) {
        return Vec::new();
    }
    let found = async {
        let mut tx = begin_trial(&plan.outline.pool).await?;
        let found = problems(plan, phase, migration, is_move, &mut tx).await;
        tx.rollback().await?;
        found
    };
    in_time(plan.new_table(), is_move, found).await
}

/// Begins a transaction that neither waits for others for long nor makes them wait.
pub(super) async fn begin_trial(pool: &PgPool) -> Result<PgTransaction<'static>, sqlx::Error> {
    let mut tx = begin_work(pool).await?;
    tx.execute(LIMITS).await?;
    Ok(tx)
}

/// What a look at the table finds. A move needs an answer: without one, that is the problem.
pub(super) async fn in_time(
    table: &str,
    is_move: bool,
    look: impl Future<Output = Result<Vec<PlanProblem>, sqlx::Error>>,
) -> Vec<PlanProblem> {
    let reason = match timeout(LIMIT, look).await {
        Ok(Ok(found)) => return found,
        Ok(Err(error)) => describe_error(&error),
        Err(_) => format!("no answer within {LIMIT:?}"),
    };
    if !is_move {
        return Vec::new();
    }
    vec![PlanProblem::blocking(
        format!("whether the service can write {table} could not be tried: {reason}"),
        "end the transactions that hold locks on it, or free connections of the pool; it is tried again each second",
    )]
}

async fn problems(
    plan: &Description,
    phase: Phase,
    migration: i32,
    is_move: bool,
    tx: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let Some(recorded) = sides::find(tx, migration).await? else {
        return Ok(if phase == Phase::Expand { Vec::new() } else { vec![unrecorded(plan, migration)] });
    };
    let mut problems = Vec::new();
    for (table, side) in [(plan.old_table(), &recorded.old), (plan.new_table(), &recorded.new)] {
        let problem = of_name(table, side, tx).await?;
        problems.extend(problem.filter(|problem| !problems.contains(problem)));
    }
    let old = TableFacts::read(tx, plan.old_table()).await?;
    let (Some(old), true) = (old, problems.is_empty()) else { return Ok(problems) };
    if old.row_security {
        problems.push(row_security(plan.old_table(), &old));
    }
    problems.extend(of_guard(plan, migration, &old, tx).await?);
    problems.extend(replication::before_move(plan, phase, tx).await?);
    if phase == Phase::Switch {
        problems.extend(readers(plan, tx).await?);
    }
    // The copy arms it again.
    if phase >= Phase::Backfill {
        problems.extend(unguarded(plan, phase, migration, tx).await?);
    }
    problems.extend(match plan.moves_columns() {
        true => of_columns(plan, &old),
        false => of_tables(plan, &old, tx).await?,
    });
    if is_move && phase == Phase::Switch {
        problems.extend(nulls(plan, tx).await?);
    }
    if is_move && problems.is_empty() {
        problems.extend(of_writes(plan, phase, &old, tx).await?);
    }
    Ok(problems)
}

/// `expand` has recorded both sides, so the rows were deleted.
fn unrecorded(plan: &Description, migration: i32) -> PlanProblem {
    let tables = [plan.old_table(), plan.new_table()];
    // Not as one that the migration made: `abandon` would drop it.
    let record =
        sides::record(&migration.to_string(), tables, [&plan.old_columns(), &plan.new_columns()], false);
    PlanProblem::blocking(
        format!(
            "cutover.sides does not say which {} and {} were in `expand`, so another table of that name would not be noticed",
            tables[0], tables[1]
        ),
        format!("if they are the same, `{record}`"),
    )
}

/// The role that armed the guard trigger. The trigger writes the new table with its rights, and `contract` drops the old side.
async fn of_guard(
    plan: &Description,
    migration: i32,
    old: &TableFacts,
    tx: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let armed: Option<(String, bool, Vec<String>)> = unprepared::query_as(
        "select quote_ident(pg_get_userbyid(p.proowner)), p.proowner = current_user::regrole, \
             array(select name from unnest('{select,insert,update,delete}'::text[]) as name \
                 where not has_table_privilege(p.proowner, to_regclass($2)::oid, name)) \
         from pg_proc p join pg_namespace n on n.oid = p.pronamespace \
         where n.nspname = 'cutover' and p.proname = 'guard_' || $1",
    )
    .bind(migration)
    .bind(plan.new_table())
    .fetch_optional(tx)
    .await?;
    let Some((role, is_own, lacks)) = armed else { return Ok(Vec::new()) };
    let mut problems = Vec::new();
    if is_own && !old.is_owner {
        problems.push(not_owner(plan.old_table(), old));
    }
    if !plan.moves_columns() && !lacks.is_empty() {
        let (table, lacks) = (plan.new_table(), lacks.join(", "));
        problems.push(PlanProblem::blocking(
            format!(
                "the guard trigger writes {table} with the rights of role {role}, which lacks {lacks} on it, so external \
                 writes wait for repair"
            ),
            format!("`grant {lacks} on {table} to {role}`"),
        ));
    }
    Ok(problems)
}

/// A name of the plan that means another table than in `expand`, or none.
async fn of_name(
    table: &str,
    side: &SideRow,
    tx: &mut PgConnection,
) -> Result<Option<PlanProblem>, sqlx::Error> {
    let Some(found) = &side.table else { return Ok(None) };
    let schema = split_table(table).0;
    let (named, home, gone, path, role): (Option<i64>, Option<String>, Option<String>, String, String) =
        unprepared::query_as(
            "select to_regclass($1)::oid::bigint, quote_ident(current_schema()), \
                 (select name from unnest(case when $2 is null then string_to_array(current_setting('search_path'), ',') \
                     else array[$2] end) with ordinality as path (entry, place) cross join lateral trim(entry) as name \
                     where name <> '\"$user\"' and to_regnamespace(name) is null order by place limit 1), \
                 current_setting('search_path'), quote_ident(current_user)",
        )
        .bind(table)
        .bind(schema)
        .fetch_one(&mut *tx)
        .await?;
    if named == Some(side.relation) {
        return Ok(None);
    }
    if let (None, Some(problem)) = (named, hidden(found, tx).await?) {
        return Ok(Some(problem));
    }
    let found_schema = split_table(found).0;
    Ok(Some(match (named, gone, found_schema) {
        (None, Some(gone), Some(found_schema)) => PlanProblem::blocking(
            format!(
                "table {table} is {found} now, and schema {gone}, in which the service looks for it, does not exist"
            ),
            format!(
                "name the table {found} in the plan; or, if the schema was renamed, `alter schema {found_schema} rename to \
                 {gone}`; or, if the search_path of role {role} was changed, `alter role {role} set search_path = \
                 {found_schema}`, and restart the service"
            ),
        ),
        (None, ..) => moved(table, found, home.as_deref()),
        (Some(_), _, Some(found_schema)) if schema.is_none() => PlanProblem::blocking(
            format!(
                "table {table} is another one for the service than {found} of `expand`: its search_path is {path}"
            ),
            format!(
                "name it {found} in the plan; or `alter role {role} set search_path = {found_schema}, {path}`, and restart \
                 the service"
            ),
        ),
        (Some(_), ..) => moved(table, found, None),
    }))
}

fn of_columns(plan: &Description, facts: &TableFacts) -> Vec<PlanProblem> {
    let (table, old, new) = (plan.old_table(), plan.old_columns(), plan.new_columns());
    let mut problems = losing_rules(table, facts, &[old.clone(), new.clone()].concat());
    if let Some(first) = old.first() {
        problems.extend(new.iter().flat_map(|column| privilege_problems(table, first, column, facts)));
    }
    problems
}

async fn of_tables(
    plan: &Description,
    old: &TableFacts,
    tx: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let tables = [plan.old_table(), plan.new_table()];
    let Some(new) = TableFacts::read(tx, tables[1]).await? else {
        return Ok(vec![missing(tables[1], tx).await?]);
    };
    let mut problems = new_table_now(tables, old, &new);
    if !keeps_rows(plan) {
        problems.extend(refers_to_old(tables, old, &new));
    }
    problems.extend(table_privilege_problems(tables, old, &new));
    Ok(problems)
}

/// Rows that keep a column from becoming `NOT NULL` in `contract`. Without an answer in time, it is seen there.
async fn nulls(plan: &Description, tx: &mut PgConnection) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let mut problems = Vec::new();
    if !matches!(plan.shape, Shape::Columns { not_null: true, .. }) {
        return Ok(problems);
    }
    let table = plan.new_table();
    for (column, _) in plan.added() {
        let mut attempt = tx.begin().await?;
        let look =
            format!("set local statement_timeout = '1s'; select from {table} where {column} is null limit 1");
        let found = attempt.fetch_all(AssertSqlSafe(look)).await;
        attempt.rollback().await?;
        match found {
            Ok(rows) if rows.is_empty() => {}
            Ok(_) => problems.push(PlanProblem::blocking(
                format!("rows of {table} hold a null in column {column}, which is to become NOT NULL"),
                format!("give them a value (`update {table} set {column} = … where {column} is null`), or leave `.not_null()` out"),
            )),
            Err(sqlx::Error::Database(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(problems)
}

/// Whether rows of the old table stay and lose columns.
fn keeps_rows(plan: &Description) -> bool {
    plan.part().is_some_and(|part| part.keeps_rows)
}

/// What the service will write to the old table, tried.
async fn of_writes(
    plan: &Description,
    phase: Phase,
    facts: &TableFacts,
    tx: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let new = match plan.moves_columns() {
        true => values(plan, phase),
        false if keeps_rows(plan) => Vec::new(),
        false => return of_new_rows(plan, tx).await,
    };
    WriteTrial { table: plan.old_table(), facts, old: &plan.old_columns(), new: &new }.problems(tx).await
}

/// What the service will write to the new table alone, tried.
async fn of_new_rows(plan: &Description, tx: &mut PgConnection) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let tables = [plan.old_table(), plan.new_table()];
    let Some(new) = TableFacts::read(tx, tables[1]).await? else { return Ok(Vec::new()) };
    let backward = &plan.outline.sides.backward;
    let backward = match &backward.code {
        MappingCode::Sql(expressions) => Some((&*backward.columns, &**expressions)),
        MappingCode::Rust(_) => None,
    };
    let Ok(key) = keyset::find(tx, tables[0], &plan.outline.key).await? else { return Ok(Vec::new()) };
    let key: Vec<String> = key.columns.into_iter().map(|column| column.name).collect();
    let trial = NewRowTrial { tables, new: &new, key: &key, backward };
    Ok(trial.problem(tx).await?.into_iter().collect())
}

/// The new columns. Before `ramp` they may not hold their values yet.
fn values(plan: &Description, phase: Phase) -> Vec<(String, Option<String>)> {
    let forward = &plan.outline.sides.forward;
    let value = |number: usize| match &forward.code {
        MappingCode::Sql(expressions) if phase < Phase::Ramp => expressions.get(number).cloned(),
        _ => None,
    };
    let columns = forward.columns.iter().enumerate();
    columns.map(|(number, name)| (unquote(name), value(number))).collect()
}
