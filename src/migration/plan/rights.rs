//! What is attached to the old side, and what the library's role may not do about it in `verify`, although it may run `expand`.

use sqlx::PgConnection;

use super::attached::lacking;
use super::attached_trial::RecentTrial;
use super::description::Description;
use crate::ledger::unprepared;
use crate::migration::catalog::{Attached, OTHER_TWIN, PlanProblem, Step, quote};

/// What is attached to the old side and not to the new one. Adds what stands against it.
pub(super) async fn attached_problems(
    plan: &Description,
    problems: &mut Vec<PlanProblem>,
    tx: &mut PgConnection,
) -> Result<Vec<Attached>, sqlx::Error> {
    let lacking = lacking(plan, Some(&RecentTrial::default()), tx).await?;
    problems.extend(of_rights(plan, &lacking, tx).await?);
    let (attached, found): (Vec<_>, Vec<_>) = lacking.into_iter().unzip();
    problems.extend(found);
    Ok(attached)
}

/// What is missing for the plan's indexes, and for what it carries over.
async fn of_rights(
    plan: &Description,
    lacking: &[(Attached, PlanProblem)],
    tx: &mut PgConnection,
) -> Result<Vec<PlanProblem>, sqlx::Error> {
    let by_library: Vec<&Attached> =
        lacking.iter().filter(|(_, problem)| problem.by_library).map(|(attached, _)| attached).collect();
    let steps = by_library.iter().flat_map(|attached| &attached.steps);
    let built = steps.filter_map(|step| match step {
        Step::Index { name, .. } => Some(name),
        Step::Statement(_) => None,
    });
    let built: Vec<&String> = plan.changes.indexes.iter().map(|index| &index.name).chain(built).collect();
    let mut problems = Vec::new();
    if let Some(index) = built.first() {
        problems.extend(of_index(plan.new_table(), index, tx).await?);
    }
    if !plan.moves_columns() && !plan.moves_some_rows() {
        problems.extend(of_sequences(plan, tx).await?);
    }
    for attached in by_library {
        problems.extend(of_other_table(attached, tx).await?);
    }
    Ok(problems)
}

/// Another role than the owner is told each statement when it comes.
async fn of_index(
    table: &str,
    index: &str,
    tx: &mut PgConnection,
) -> Result<Option<PlanProblem>, sqlx::Error> {
    let lacks: Option<(String, String)> = unprepared::query_as(
        "select quote_ident(n.nspname), quote_ident(current_user) from pg_class c join pg_namespace n on n.oid = c.relnamespace \
         where c.oid = to_regclass($1) and pg_has_role(c.relowner, 'usage') and not has_schema_privilege(n.oid, 'create')",
    )
    .bind(table)
    .fetch_optional(tx)
    .await?;
    Ok(lacks.map(|(schema, role)| {
        PlanProblem::warning(
            format!(
                "role {role} owns {table} and may not create index {} on it, because it has no right to create in schema {schema}",
                quote(index)
            ),
            format!("`grant create on schema {schema} to {role}`"),
        )
    }))
}

/// What `contract` moves to the schema of the new table.
async fn of_sequences(plan: &Description, tx: &mut PgConnection) -> Result<Option<PlanProblem>, sqlx::Error> {
    let lacks: Option<(String, String, String)> = unprepared::query_as(
        "select s.oid::regclass::text, quote_ident(n.nspname), quote_ident(current_user) from pg_depend d \
             join pg_class s on s.oid = d.objid and s.relkind = 'S' \
             join pg_class c on c.oid = to_regclass($2) join pg_namespace n on n.oid = c.relnamespace \
         where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass \
             and d.refobjid = to_regclass($1) and d.deptype in ('a', 'i') and pg_has_role(c.relowner, 'usage') \
             and not has_schema_privilege(n.oid, 'create') order by s.oid limit 1",
    )
    .bind(plan.old_table())
    .bind(plan.new_table())
    .fetch_optional(tx)
    .await?;
    Ok(lacks.map(|(sequence, schema, role)| {
        PlanProblem::warning(
            format!(
                "role {role} has no right to create in schema {schema}, in which `contract` gives sequence {sequence} to {}",
                plan.new_table()
            ),
            format!("`grant create on schema {schema} to {role}`"),
        )
    }))
}

/// The table at the other end of a foreign key.
async fn of_other_table(
    attached: &Attached,
    tx: &mut PgConnection,
) -> Result<Option<PlanProblem>, sqlx::Error> {
    let (Some(table), Some(trial)) = (&attached.other_table, &attached.trial) else { return Ok(None) };
    let found: Option<(bool, bool, String, String)> = unprepared::query_as(
        "select pg_has_role(c.relowner, 'usage'), has_any_column_privilege(c.oid, 'references'), \
             quote_ident(pg_get_userbyid(c.relowner)), quote_ident(current_user) \
         from pg_class c where c.oid = to_regclass($1)",
    )
    .bind(table)
    .fetch_optional(tx)
    .await?;
    let Some((is_owner, may_refer, owner, role)) = found else { return Ok(None) };
    let is_changed = trial.statement.contains(&format!("alter table {OTHER_TWIN} "));
    let (reason, grant) = match is_changed {
        true if !is_owner => (format!("does not own {table}"), format!("`grant {owner} to {role}`")),
        false if !may_refer => {
            (format!("may not refer to {table}"), format!("`grant references on {table} to {role}`"))
        }
        _ => return Ok(None),
    };
    Ok(Some(PlanProblem::warning(
        format!("role {role} cannot carry over {}, because it {reason}", attached.what),
        format!("{grant}, or use `.without({:?})`", attached.name),
    )))
}
