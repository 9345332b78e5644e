//! Table `plans`: what each version of a service would execute, for people to read.

use sqlx::PgConnection;

use super::{Ledger, literal, unprepared};

/// What a build publishes about a migration.
#[derive(Debug)]
pub(crate) struct PublishedPlan<'a> {
    pub(crate) migration: i32,
    pub(crate) version: &'a str,
    /// The build declares a plan. One that does not leaves the plan of another build of the same version as it is.
    pub(crate) has_plan: bool,
    /// `[[task, sql], …]` as JSON.
    pub(crate) tasks: &'a str,
    pub(crate) old_table: Option<&'a str>,
    /// Empty: the whole table.
    pub(crate) old_columns: &'a [String],
    pub(crate) desired_from: &'a str,
}

/// The name under which the statements of a task for a team's own migration file are published.
pub(crate) fn file_of(task: &str) -> String {
    format!("{task}_file")
}

/// The beginning of a migration file that drops the old side. It fails unless the migration is in `contract`. A database
/// without the ledger, which is created from files alone, has no old build to protect.
pub(crate) fn contract_guard(fleet: &str, name: &str) -> String {
    format!(
        "do $cutover$\n\
         begin\n    \
             if to_regclass('cutover.migrations') is not null then\n        \
                 if exists (select from cutover.migrations where fleet = {} and name = {} and phase <> 'contract') then\n            \
                     raise exception using message = {};\n        \
                 end if;\n    \
             end if;\n\
         end\n\
         $cutover$;\n",
        literal::text(fleet),
        literal::text(name),
        literal::text(&format!(
            "migration {fleet}/{name} is not in contract: run this file after `cutover contract {name}`"
        )),
    )
}

/// Publishes a plan, unless the migration has ended. Many instances of one version that start at once write it once.
pub(crate) async fn publish(ledger: &Ledger, plan: &PublishedPlan<'_>) -> Result<(), sqlx::Error> {
    let mut tx = ledger.begin().await?;
    unprepared::query(
        "insert into cutover.plans as p (migration_id, version, tasks, old_table, old_columns, desired_from) \
         select id, $2, $3::text::jsonb, $4, $5, $6 from cutover.migrations where id = $1 and ended_at is null \
         on conflict (migration_id, version) do update \
             set tasks = excluded.tasks, old_table = excluded.old_table, old_columns = excluded.old_columns, \
                 desired_from = excluded.desired_from, published_at = clock_timestamp() \
         where $7 and (p.tasks, p.old_table, p.old_columns, p.desired_from) \
             is distinct from (excluded.tasks, excluded.old_table, excluded.old_columns, excluded.desired_from)",
    )
    .bind(plan.migration)
    .bind(plan.version)
    .bind(plan.tasks)
    .bind(plan.old_table)
    .bind(plan.old_columns)
    .bind(plan.desired_from)
    .bind(plan.has_plan)
    .execute(&mut *tx)
    .await?;
    tx.commit().await
}

/// Records what the driver found to stand against its plan, as JSON.
pub(crate) async fn record_problems(
    tx: &mut PgConnection,
    migration: i32,
    problems: &str,
) -> Result<(), sqlx::Error> {
    unprepared::query(
        "insert into cutover.plan_problems (migration_id, problems) values ($1, $2::text::jsonb) \
         on conflict (migration_id) do update set problems = excluded.problems, seen_at = clock_timestamp()",
    )
    .bind(migration)
    .bind(problems)
    .execute(tx)
    .await?;
    Ok(())
}

/// What an ended migration dropped, or would have dropped, if that is not the table and columns given here. `None`: it is
/// the same, or no build published what it drops.
///
/// The schema is compared only if both name one. A table that was renamed since is still the same.
pub(crate) async fn another_old_side(
    tx: &mut PgConnection,
    migration: i32,
    table: &str,
    columns: &[String],
) -> Result<Option<String>, sqlx::Error> {
    let known: Vec<(String, Vec<String>)> = unprepared::query_as(
        "select distinct on (old_table, old_columns) old_table, old_columns from cutover.plans \
         where migration_id = $1 and old_table is not null",
    )
    .bind(migration)
    .fetch_all(&mut *tx)
    .await?;
    let is_renamed: bool = unprepared::query_scalar(
        "select exists (select from cutover.sides where migration_id = $1 and side = 'old' \
             and relation = to_regclass($2)::oid)",
    )
    .bind(migration)
    .bind(table)
    .fetch_one(tx)
    .await?;
    let is_same = |(known, its_columns): &(String, Vec<String>)| {
        its_columns == columns && (is_renamed || is_same_table(known, table))
    };
    let Some((table, columns)) = known.first().filter(|_| !known.iter().any(is_same)) else {
        return Ok(None);
    };
    Ok(Some(side_name(table, columns)))
}

/// How a side is named in texts: the table, and its columns if only these are meant.
pub(crate) fn side_name(table: &str, columns: &[String]) -> String {
    match columns {
        [] => table.to_owned(),
        [column] => format!("{table}.{column}"),
        several => format!("{table} ({})", several.join(", ")),
    }
}

/// Whether two names, quoted or not, are of one table, where one of them may lack the schema.
pub(crate) fn is_same_table(one: &str, other: &str) -> bool {
    let parts = |name: &str| -> Vec<String> {
        name.split('.').map(|part| part.trim_matches('"').to_owned()).rev().collect()
    };
    parts(one).iter().zip(&parts(other)).all(|(one, other)| one == other)
}

#[cfg(test)]
mod tests {
    use super::is_same_table;

    #[test]
    fn a_schema_is_compared_only_if_both_name_one() {
        assert!(is_same_table("orders", "\"orders\""));
        assert!(is_same_table("app.orders", "orders"));
        assert!(!is_same_table("app.orders", "public.orders"));
        assert!(!is_same_table("app.orders", "app.orders_2"));
    }
}
