//! What stands against moving a part of a table, and against a partitioned new table.

use sqlx::PgConnection;

use super::description::Description;
use super::refusal::not_computed;
use crate::ledger::{is_refusal, unprepared};
use crate::migration::batch::{Keyset, Part};
use crate::migration::catalog::{
    PlanProblem, Resolved, TableFacts, insert_without, old_column_problems, quote, resolve, unquote,
};

/// What stands against moving this part of the old table.
pub(super) async fn of_part(
    plan: &Description,
    old: &TableFacts,
    key: Option<&Keyset>,
    tx: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let Some(part) = plan.part() else { return Ok(Vec::new()) };
    let (table, condition) = (plan.old_table(), &part.condition);
    let resolved = match resolve(tx, table, &[], std::slice::from_ref(condition)).await {
        Ok(resolved) => resolved,
        Err(error) if is_refusal(&error) => {
            return Ok(vec![not_computed(&format!("condition `{condition}`"), &error)]);
        }
        Err(error) => return Err(error),
    };
    let Some(key) = key else { return Ok(Vec::new()) };
    let kept = kept_columns(plan, key);
    let mut problems = of_condition(part, &resolved, &kept);
    if part.keeps_rows {
        let moving = plan.old_columns();
        for column in &moving {
            problems.extend(old_column_problems(table, column, old));
        }
        if problems.is_empty() {
            problems.extend(insert_without(tx, table, old, &moving).await?);
        }
        return Ok(problems);
    }
    let is_lost = |name: &String| !kept.contains(name) && !plan.changes.waived.contains(name);
    let stored = old.columns.iter().filter(|column| !column.is_generated);
    problems.extend(stored.map(|column| &column.name).filter(|name| is_lost(name)).map(|name| {
        PlanProblem::blocking(
            format!(
                "no `column_back` fills column {} of {table}, so moved rows lose its value: `contract` deletes them from \
                 {table}, and a row that comes back does not have it",
                quote(name)
            ),
            format!("`.same({name:?})` and the column in the new table, or `.without({name:?})` if its values are no longer needed"),
        )
    }));
    Ok(problems)
}

/// The columns of the old table that a row has again when it comes back.
fn kept_columns(plan: &Description, key: &Keyset) -> Vec<String> {
    let filled = plan.outline.sides.backward.columns.iter().map(|column| unquote(column));
    key.plain_names().into_iter().chain(filled).collect()
}

fn of_condition(part: &Part, resolved: &Resolved, kept: &[String]) -> Vec<PlanProblem> {
    let condition = &part.condition;
    let unstable = resolved.unstable.iter().map(|(function, remedy)| {
        PlanProblem::blocking(
            format!("condition `{condition}` calls {function}, whose result changes while the row does not"),
            remedy.clone(),
        )
    });
    let unknown = resolved.uses.iter().filter(|column| !kept.contains(column)).map(|column| {
        PlanProblem::blocking(
            format!(
                "condition `{condition}` uses column {}, which no `column_back` fills, so a row that comes back might not \
                 fulfil it",
                quote(column)
            ),
            format!("`.column_back({column:?}, \"…\")`, or a condition over the key and columns that come back"),
        )
    });
    unstable.chain(unknown).collect()
}

/// What stands against a new table that is partitioned: its key has the columns by which it is partitioned.
pub(super) async fn of_partitions(
    plan: &Description,
    new: &TableFacts,
    key: Option<&Keyset>,
    tx: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let (Some(key), "p") = (key, &*new.kind) else { return Ok(Vec::new()) };
    let (old_table, new_table) = (plan.old_table(), plan.new_table());
    let mut problems = Vec::new();
    if new.children.is_empty() {
        problems.push(PlanProblem::blocking(
            format!("{new_table} has no partition, so it takes no row"),
            format!(
                "`.expand_sql(\"create table … partition of {} …\")` for each",
                new_table.replace('"', "")
            ),
        ));
    }
    let by: Vec<String> = unprepared::query_scalar(
        "select a.attname::text from pg_partitioned_table p \
         cross join lateral unnest(p.partattrs::int2[]) with ordinality as part (number, position) \
         join pg_attribute a on a.attrelid = p.partrelid and a.attnum = part.number \
         where p.partrelid = to_regclass($1) order by part.position",
    )
    .bind(new_table)
    .fetch_all(&mut *tx)
    .await?;
    let mut wanted = key.plain_names();
    let lacks = by.into_iter().filter(|column| !wanted.contains(column)).collect::<Vec<_>>();
    if lacks.is_empty() {
        return Ok(problems);
    }
    wanted.extend(lacks);
    let quoted: Vec<String> = wanted.iter().map(|column| quote(column)).collect();
    let keys: Vec<String> = wanted.iter().map(|column| format!("`.key({column:?})`")).collect();
    let columns = quoted.join(", ");
    problems.push(PlanProblem::blocking(
        format!(
            "a unique index of the partitioned table {new_table} has to have the columns by which it is partitioned, so rows \
             are visited by ({columns}), and the key of {old_table} is ({})",
            key.names()
        ),
        format!(
            "`create unique index concurrently on {old_table} ({columns})` where all of them are NOT NULL, {}, and \
             `primary key ({columns})` in the new table",
            keys.join(" ")
        ),
    ));
    Ok(problems)
}
