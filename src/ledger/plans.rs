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
