//! What a change finds in the database: everything that stands against it, before `expand` and before a step.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use super::addition::Addition;
use super::description::{Description, Removal};
use super::found::Table;
use super::reads;
use super::removal::{of_identity, of_index};
use super::rows::violations;
use super::trial::{REFERENCED, is_in_partition_key, may_refer, try_on_twin};
use crate::ledger::literal::text as literal;
use crate::ledger::{describe_error, external_writes, is_refusal, sides, unprepared};
use crate::migration::catalog::{
    OldSide, PlanProblem, TableFacts, foreign_partitions, insert_without, not_owner, quote, resolve, unquote,
};
use crate::migration::phase::{Phase, time_left};

/// How long the preflight checks rows.
const LOOK_LIMIT: Duration = Duration::from_secs(3);

/// Every problem of the change, found in one transaction that is rolled back. `row_limit`: how long a check of all rows
/// may take.
pub(super) async fn problems(
    plan: &Description,
    migration: Option<i32>,
    connection: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let mut tx = connection.begin().await?;
    tx.execute("set local lock_timeout = '200ms'; set local statement_timeout = '10s'").await?;
    let is_recorded = sides::find(&mut tx, migration).await?.is_some();
    let mut problems = of_schema(plan, migration, is_recorded, &mut tx).await?;
    // Later the tasks check all rows themselves.
    if let Some(table) = plan.find(&mut tx, migration).await?
        && !is_recorded
        && !problems.iter().any(|problem| problem.is_blocking)
    {
        problems.extend(violations(plan, &table, Some(LOOK_LIMIT), &mut tx).await?);
    }
    tx.rollback().await?;
    Ok(problems)
}

/// The same without a check of rows.
pub(super) async fn of_schema(
    plan: &Description,
    migration: Option<i32>,
    is_recorded: bool,
    tx: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let missing = || {
        PlanProblem::blocking(
            format!("table {} does not exist, or is not on the search_path", plan.table),
            "create it, or name it with its schema",
        )
    };
    let Some(table) = plan.find(&mut *tx, migration).await? else { return Ok(vec![missing()]) };
    let Some(facts) = TableFacts::read(&mut *tx, &table.name).await? else { return Ok(vec![missing()]) };
    let name = &table.name;
    let mut problems = Vec::new();
    if !facts.is_owner {
        problems.push(not_owner(name, &facts));
    }
    if facts.row_security {
        problems.push(PlanProblem::blocking(
            format!(
                "row-level security of {name} can hide rows that violate a constraint from role {}",
                facts.role
            ),
            format!("`alter role {} bypassrls`", quote(&facts.role)),
        ));
    }
    if !plan.additions.is_empty() {
        problems.extend(foreign_partitions(name, &facts));
    }
    for addition in &plan.additions {
        for column in addition.columns().iter().filter(|column| facts.column(column).is_none()) {
            problems.push(PlanProblem::blocking(
                format!("column {column:?} of {name} does not exist ({})", addition.text()),
                "add the column, or name another one",
            ));
        }
    }
    if problems.is_empty() {
        for addition in &plan.additions {
            problems.extend(of_addition(addition, &table, is_recorded, tx).await?);
            for column in addition.columns() {
                let others = sides::other_users(tx, migration, name, Some(column)).await?;
                problems.extend(
                    others
                        .into_iter()
                        .filter(|other| !other.adds_only)
                        .map(|other| claimed(other, name, column)),
                );
            }
        }
        if let Some(removal) = &plan.removal {
            problems.extend(of_removal(plan, removal, &table, &facts, migration, tx).await?);
        }
    }
    Ok(problems)
}

async fn of_addition(
    addition: &Addition,
    table: &Table,
    is_recorded: bool,
    tx: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let mut problems = Vec::new();
    let name = match addition {
        Addition::NotNull { .. } => None,
        Addition::Check { name, .. } | Addition::Unique { name, .. } => Some(name),
        Addition::ForeignKey(key) => Some(&key.name),
    };
    if let (Some(name), false) = (name, is_recorded) {
        let is_taken: bool = unprepared::query_scalar(
            "select exists (select from pg_constraint where conrelid = $1::oid and conname = $2) \
                 or exists (select from pg_class c join pg_class t on t.oid = $1::oid and t.relnamespace = c.relnamespace \
                     where c.relname = $2 and $3)",
        )
        .bind(table.relation)
        .bind(name)
        .bind(matches!(addition, Addition::Unique { .. }))
        .fetch_one(&mut *tx)
        .await?;
        if is_taken {
            problems.push(PlanProblem::blocking(
                format!("the name of {} is in use already", addition.text()),
                "choose another name, or leave the constraint out of the plan if it is the same one",
            ));
        }
    }
    match addition {
        Addition::Check { expression, .. } => {
            let tried = match resolve(tx, &table.name, &[], std::slice::from_ref(expression)).await {
                Ok(_) => try_on_twin(&table.name, &format!("check ({expression}\n)"), None, tx).await?,
                Err(error) => Some(error),
            };
            if let Some(error) = tried {
                problems.push(not_usable(addition, error)?);
            }
        }
        Addition::Unique { .. } if table.is_partitioned => {
            let mut attempt = tx.begin().await?;
            let create = format!(
                "do $$ begin execute {} || pg_get_partkeydef({}::oid); end $$; {}",
                literal(&format!(
                    "create temporary table cutover_indexed (like {}) partition by ",
                    table.name
                )),
                table.relation,
                addition
                    .index()
                    .map(|index| index.create_blocking("pg_temp.cutover_indexed"))
                    .unwrap_or_default()
            );
            if let Err(error) = attempt.execute(AssertSqlSafe(create)).await {
                problems.push(not_usable(addition, error)?);
            }
            attempt.rollback().await?;
        }
        Addition::ForeignKey(key) => {
            let has_key: bool = unprepared::query_scalar(
                "select exists (select from pg_index i where i.indrelid = to_regclass($1) and i.indisunique \
                     and i.indisvalid and i.indpred is null and i.indexprs is null \
                     and (select array_agg(a.attname::text order by a.attname::text) from pg_attribute a \
                         where a.attrelid = i.indrelid and a.attnum = any ((i.indkey::int2[])[0:i.indnkeyatts - 1])) \
                       = (select array_agg(name order by name) from unnest($2::text[]) as named (name)))",
            )
            .bind(&key.table)
            .bind(&key.referenced)
            .fetch_one(&mut *tx)
            .await?;
            if !has_key {
                let columns = key.referenced.join(", ");
                problems.push(PlanProblem::blocking(
                    format!("table {} has no unique constraint over ({columns})", key.table),
                    format!("`alter table {} add unique ({columns})`, or name other columns", key.table),
                ));
            } else if let Some(problem) = may_refer(addition, key, tx).await? {
                problems.push(problem);
            } else if let Some(error) =
                try_on_twin(&table.name, &key.definition_to(REFERENCED), Some(&key.table), tx).await?
            {
                problems.push(not_usable(addition, error)?);
            }
        }
        _ => {}
    }
    Ok(problems)
}

/// Another migration would drop the column, and the constraint with it.
fn claimed(other: sides::OtherUser, table: &str, column: &str) -> PlanProblem {
    let sides::OtherUser { fleet, name, phase, .. } = other;
    PlanProblem::blocking(
        format!(
            "migration {fleet}/{name}, which is in `{phase}`, moves or drops column {column:?} of {table}"
        ),
        format!("finish that migration first, or end it in `off` with `cutover abandon {fleet}/{name}`"),
    )
}

fn not_usable(addition: &Addition, error: sqlx::Error) -> Result<PlanProblem, sqlx::Error> {
    match error {
        error if is_refusal(&error) => Ok(PlanProblem::blocking(
            format!("{} cannot be added: {}", addition.text(), describe_error(&error)),
            "correct it in the plan",
        )),
        error => Err(error),
    }
}

async fn of_removal(
    plan: &Description,
    removal: &Removal,
    table: &Table,
    facts: &TableFacts,
    migration: Option<i32>,
    tx: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let (name, mut problems) = (&table.name, Vec::new());
    let column = match removal {
        Removal::Column(column) => Some(&**column),
        _ => None,
    };
    if !matches!(removal, Removal::Index(_)) {
        for other in sides::other_users(tx, migration, name, column).await? {
            let sides::OtherUser { fleet, name: migration, phase, .. } = other;
            problems.push(PlanProblem::blocking(
                format!(
                    "migration {fleet}/{migration}, which is in `{phase}`, works on what would be dropped"
                ),
                "finish that migration first, or end it in `off` with `cutover abandon`",
            ));
        }
    }
    match removal {
        Removal::Column(column) => match facts.column(column) {
            None => problems.push(PlanProblem::blocking(
                format!("column {column:?} of {name} does not exist"),
                "leave it out of the plan if it has been dropped",
            )),
            Some(found) if found.in_primary_key => problems.push(PlanProblem::blocking(
                format!(
                    "column {column:?} of {name} is part of the primary key, which would be dropped with it"
                ),
                "give the table another primary key first",
            )),
            Some(_) if is_in_partition_key(table, column, tx).await? => problems.push(PlanProblem::blocking(
                format!("column {column:?} of {name} is part of the partition key"),
                "move the rows with a TableMigration to a table that is partitioned by other columns",
            )),
            Some(_) if !facts.parents.is_empty() => problems.push(PlanProblem::blocking(
                format!("column {column:?} of {name} may be inherited from {}", facts.parents.join(", ")),
                "describe the change for the table that it is inherited from",
            )),
            Some(_) => {
                problems.extend(insert_without(tx, name, facts, std::slice::from_ref(column)).await?);
                problems.extend(of_identity(name, column, tx).await?);
            }
        },
        Removal::Index(index) => problems.extend(of_index(&plan.index(index), table, tx).await?),
        Removal::Table => {}
    }
    problems.extend(reads::uncounted(plan, tx).await?);
    if let Some(old_side) = plan.old_side() {
        problems.extend(dependents(&old_side, tx).await?);
    }
    Ok(problems)
}

/// Everything that would prevent the drop.
pub(super) async fn all_dependents(
    old_side: &OldSide,
    tx: &mut PgConnection,
) -> Result<Vec<String>, sqlx::Error> {
    let mut found = old_side.dependents(&mut *tx).await?.unwrap_or_default();
    found.extend(old_side.users_of_sequences(tx).await?);
    Ok(found)
}

/// What depends on the object that is dropped.
async fn dependents(old_side: &OldSide, tx: &mut PgConnection) -> Result<Option<PlanProblem>, sqlx::Error> {
    let dependents = all_dependents(old_side, tx).await?;
    let what = match old_side.columns.first() {
        Some(column) => format!("column {column:?} of {}", old_side.table),
        None => old_side.table.clone(),
    };
    Ok((!dependents.is_empty()).then(|| {
        PlanProblem::warning(
            format!("other objects depend on {what}: {}", dependents.join(", ")),
            "drop them before `contract`, which waits for that",
        )
    }))
}

/// Who wrote what the change forbids within the quiet period.
pub(super) async fn writers(
    plan: &Description,
    migration: i32,
    connection: &mut PgConnection,
) -> Result<Vec<String>, sqlx::Error> {
    external_writes::unmirrored_within(connection, migration, plan.quiet_period.as_secs_f64()).await
}

/// What holds the next step forward from `switch` and from `retire`.
pub(super) async fn before_step(
    plan: &Description,
    phase: Phase,
    migration: i32,
    connection: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let mut problems = Vec::new();
    if !(Phase::Switch..=Phase::Retire).contains(&phase) {
        return Ok(problems);
    }
    let writers = writers(plan, migration, connection).await?;
    if !writers.is_empty() {
        problems.push(PlanProblem::warning(
            format!(
                "writes that the change refuses to stop for {}: {}",
                time_left(plan.quiet_period),
                writers.join("; ")
            ),
            "deploy writers that do not need the old schema",
        ));
    }
    if phase == Phase::Retire
        && let Some(table) = plan.find(&mut *connection, Some(migration)).await?
    {
        problems.extend(reads::recent(plan, &table, migration, &mut *connection).await?);
        if let Some(sides) = sides::find(&mut *connection, migration).await?
            && let (Some(_), true, Some(table)) = (&plan.removal, sides.old.is_there, sides.old.table)
        {
            let old_side =
                OldSide { table, columns: sides.old.columns.iter().map(|column| unquote(column)).collect() };
            problems.extend(dependents(&old_side, connection).await?);
        }
    }
    Ok(problems)
}

/// Why an insert fails that leaves the column out, and what else needs it. It is tried again before `retire`, in which such inserts
/// are made.
pub(super) async fn without_column(
    plan: &Description,
    column: &String,
    migration: i32,
    tx: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let Some(table) = plan.find(&mut *tx, Some(migration)).await? else { return Ok(Vec::new()) };
    let Some(facts) = TableFacts::read(tx, &table.name).await? else { return Ok(Vec::new()) };
    let mut problems = of_identity(&table.name, column, &mut *tx).await?;
    problems.extend(insert_without(tx, &table.name, &facts, std::slice::from_ref(column)).await?);
    Ok(problems)
}
