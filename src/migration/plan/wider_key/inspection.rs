//! What stands against a wider key: everything else that names the column.

use sqlx::PgConnection;

use super::builder::Description;
use super::found::{Key, find};
use super::named_by::{claimed, interference, named_by};
use super::referring::{self, key_of, relations_of};
use super::trigger_functions::{self, TriggerFunction};
use crate::ledger::{sides, unprepared};
use crate::migration::catalog::{
    PlanProblem, TableFacts, more_columns, not_owner, quote, rename_away, unidentified,
};

/// Everything at once. Also asked before the exchange, because an object that names the key may have been added since.
pub(super) async fn problems(
    plan: &Description,
    migration: Option<i32>,
    connection: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let (table, column) = (&plan.table, quote(&plan.column));
    let Some(facts) = TableFacts::read(&mut *connection, table).await? else {
        return Ok(vec![PlanProblem::blocking(
            format!("table {table} does not exist, or is not on the search_path"),
            "create it, or name it with its schema",
        )]);
    };
    let Some(key) = find(plan, migration, &mut *connection).await? else {
        return Ok(vec![PlanProblem::blocking(
            format!("column {column} of {table} does not exist"),
            "name the column of the primary key",
        )]);
    };
    let mut problems = Vec::new();
    if facts.kind != "r" || !facts.children.is_empty() || !facts.parents.is_empty() {
        problems.push(PlanProblem::blocking(
            format!("{table} is partitioned, a partition, or part of an inheritance tree"),
            "move it with a TableMigration to a table whose key is `bigint`",
        ));
    }
    if !facts.is_owner {
        problems.push(not_owner(table, &facts));
    }
    problems.extend(interference(table, &facts));
    if let (Some(constraint), true) = (&key.constraint, key.is_deferrable) {
        let (constraint, index) = (quote(constraint), quote(&format!("{}_now", plan.column)));
        // The unique index that is built beside the key checks at once.
        problems.push(PlanProblem::blocking(
            format!("primary key {constraint} of {table} is deferrable, and the migration cannot defer its check"),
            format!(
                "`create unique index {index} on {table} ({column}); alter table {table} drop constraint {constraint}, add \
                 constraint {constraint} primary key using index {index}`; with `concurrently` the index is built without a \
                 lock, as a statement of its own"
            ),
        ));
    }
    if key.constraint.is_none() {
        problems.push(PlanProblem::blocking(
            format!("column {column} of {table} is not the primary key by itself"),
            "name the column of a primary key of one column; for others use a TableMigration",
        ));
    }
    if !["integer", "smallint", "bigint"].contains(&&*key.key_type) {
        problems.push(PlanProblem::blocking(
            format!("column {column} of {table} has type {}, and not `integer`", key.key_type),
            "use a TableMigration",
        ));
    }
    let is_recorded = sides::find(&mut *connection, migration).await?.is_some();
    for (name, exists) in [(&plan.wide, key.has_wide), (&plan.narrow, key.has_narrow)] {
        if exists && !is_recorded {
            problems.push(PlanProblem::blocking(
                format!("column {} of {table} exists, and the migration needs the name", quote(name)),
                rename_away(table, name),
            ));
        }
    }
    // Each of them names its rows by the key.
    let mut others = sides::other_users(connection, migration, table, None).await?;
    others.dedup_by(|one, other| (&one.fleet, &one.name) == (&other.fleet, &other.name));
    for other in others {
        problems.push(claimed(other, table, &plan.column));
    }
    problems.extend(ending_sequences(plan, &key, connection).await?);
    // A foreign key may need a constraint that is named after it.
    let referring = referring::find(plan, &key, migration, connection).await?;
    problems
        .extend(referring::problems((plan, &key), &referring, (migration, is_recorded), connection).await?);
    let others = referring.iter().filter(|one| one.moves()).map(|one| &one.table);
    for table in std::iter::once(&key.table).chain(others) {
        problems.extend(unidentified(&mut *connection, table, false).await?);
        if is_recorded {
            continue;
        }
        problems.extend(more_columns(&mut *connection, table, 1).await?);
        if !problems.iter().any(|problem| problem.is_blocking) {
            // Its rows are copied, too.
            problems.extend(key_of(table, connection).await?.err());
        }
    }
    let functions = trigger_functions::find(&relations_of(&key, &referring), connection).await?;
    problems.extend(functions.iter().filter_map(TriggerFunction::problem));
    let named = named_by(&plan.table, &plan.column, key.relation, connection).await?;
    problems.extend(named.into_iter().map(|(_, problem)| problem));
    Ok(problems)
}

/// Sequences that the key draws from and that end where the old type ends, also after the exchange.
async fn ending_sequences(
    plan: &Description,
    key: &Key,
    connection: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let found: Vec<(String, i64)> = unprepared::query_as(
        "select format('%I.%I', n.nspname, s.relname), q.seqmax from pg_attrdef f \
         join pg_attribute a on a.attrelid = f.adrelid and a.attnum = f.adnum and a.attname = $2 \
         join pg_depend d on d.classid = 'pg_attrdef'::regclass and d.objid = f.oid and d.refclassid = 'pg_class'::regclass \
         join pg_class s on s.oid = d.refobjid and s.relkind = 'S' join pg_namespace n on n.oid = s.relnamespace \
         join pg_sequence q on q.seqrelid = s.oid \
         where f.adrelid = $1::oid and q.seqincrement > 0 and q.seqmax <= 2147483647 \
           and (q.seqtypid = 'bigint'::regtype or format('%I.%I', n.nspname, s.relname) is distinct from $3)",
    )
    .bind(key.relation)
    .bind(&plan.column)
    .bind(&key.sequence)
    .fetch_all(connection)
    .await?;
    let problem = |(sequence, end): (String, i64)| {
        PlanProblem::blocking(
            format!(
                "sequence {sequence}, from which column {} of {} takes its values, ends at {end}, and the migration \
                 does not change that",
                quote(&plan.column),
                key.table
            ),
            format!("`alter sequence {sequence} as bigint no maxvalue`"),
        )
    };
    Ok(found.into_iter().map(problem).collect())
}
