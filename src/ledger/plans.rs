//! Table `plans`: what each version of a service would execute, for people to read.

use sqlx::PgConnection;

use super::{Ledger, unprepared};

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
    pub(crate) old_column: Option<&'a str>,
    pub(crate) desired_from: &'a str,
}

/// The name under which the statements of a task for a team's own migration file are published.
pub(crate) fn file_of(task: &str) -> String {
    format!("{task}_file")
}

/// The beginning of a migration file that drops the old side. It fails unless the migration is in `contract`. A database
/// without the ledger, which is created from files alone, has no old build to protect.
pub(crate) fn contract_guard(fleet: &str, name: &str) -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
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
        quoted(fleet),
        quoted(name),
        quoted(&format!(
            "migration {fleet}/{name} is not in contract: run this file after `cutover contract {name}`"
        )),
    )
}

/// Publishes a plan. Many instances of one version that start at once write it once.
pub(crate) async fn publish(ledger: &Ledger, plan: &PublishedPlan<'_>) -> Result<(), sqlx::Error> {
    let mut tx = ledger.begin().await?;
    unprepared::query(
        "insert into cutover.plans as p (migration_id, version, tasks, old_table, old_column, desired_from) \
         values ($1, $2, $3::text::jsonb, $4, $5, $6) \
         on conflict (migration_id, version) do update \
             set tasks = excluded.tasks, old_table = excluded.old_table, old_column = excluded.old_column, \
                 desired_from = excluded.desired_from, published_at = clock_timestamp() \
         where $7 and (p.tasks, p.old_table, p.old_column, p.desired_from) \
             is distinct from (excluded.tasks, excluded.old_table, excluded.old_column, excluded.desired_from)",
    )
    .bind(plan.migration)
    .bind(plan.version)
    .bind(plan.tasks)
    .bind(plan.old_table)
    .bind(plan.old_column)
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
