use super::spec::MigrationSpec;
use crate::ledger::{Ledger, unprepared};

/// Lets people read what this build would execute.
pub(crate) async fn publish(
    ledger: &Ledger,
    migration: i32,
    version: &str,
    spec: &MigrationSpec,
) -> Result<(), sqlx::Error> {
    let tasks = spec.plan.as_ref().map(|plan| plan.sql()).unwrap_or_default();
    let tasks: Vec<(&str, &str)> = tasks.iter().map(|(task, sql)| (task.name(), &**sql)).collect();
    let tasks = serde_json::to_string(&tasks).map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
    let old_side = spec.plan.as_ref().and_then(|plan| plan.old_side());
    let mut tx = ledger.begin().await?;
    // A start of many instances at once writes it once.
    unprepared::query(
        "insert into cutover.plans as p (migration_id, version, tasks, old_table, old_column, desired_from) \
         values ($1, $2, $3::text::jsonb, $4, $5, $6) \
         on conflict (migration_id, version) do update \
             set tasks = excluded.tasks, old_table = excluded.old_table, old_column = excluded.old_column, \
                 desired_from = excluded.desired_from, published_at = clock_timestamp() \
         where (p.tasks, p.old_table, p.old_column, p.desired_from) \
             is distinct from (excluded.tasks, excluded.old_table, excluded.old_column, excluded.desired_from)",
    )
    .bind(migration)
    .bind(version)
    .bind(tasks)
    .bind(old_side.as_ref().map(|old_side| &old_side.table))
    .bind(old_side.as_ref().and_then(|old_side| old_side.column.as_ref()))
    .bind(spec.desired.actor())
    .execute(&mut *tx)
    .await?;
    tx.commit().await
}
