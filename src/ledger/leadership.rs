//! Columns `driver` and `driver_until` of table `migrations`: which instance drives a migration.
//!
//! The lease only avoids duplicate work. Two drivers at once are harmless, because every move is decided again under the
//! fleet's row lock.

use std::time::Duration;

use super::Ledger;

/// No instance drives the migration, or this one does, or the driver's lease or membership has ended.
macro_rules! is_free {
    () => {
        "(driver is null or driver = {instance} or driver_until < clock_timestamp() \
          or not exists (select from cutover.instances where id = driver))"
    };
}

/// A build has published a plan that ends with a change of the schema.
macro_rules! has_old_side {
    () => {
        "exists (select from cutover.plans where migration_id = {migration} and (old_table is not null or tasks @> '[[\"contract\"]]'))"
    };
}

/// Takes or renews the leadership of a migration. `false`: another instance has it, this one is not admitted, the
/// migration has ended, or only a build with its plan may drive it and this one has none (`has_plan`).
pub(crate) async fn acquire(
    ledger: &Ledger,
    instance: i64,
    migration: i32,
    has_plan: bool,
    lease: Duration,
) -> Result<bool, sqlx::Error> {
    let statement = format!(
        concat!(
            "update cutover.migrations set driver = {instance}, \
                    driver_until = clock_timestamp() + make_interval(secs => {lease}) \
             where id = {migration} and ended_at is null and ({has_plan} or not ",
            has_old_side!(),
            ") and exists (select from cutover.instances where id = {instance} and admitted) and ",
            is_free!(),
            " returning id"
        ),
        instance = instance,
        migration = migration,
        has_plan = has_plan,
        lease = lease.as_secs_f64()
    );
    Ok(ledger.ask::<()>(statement).await?.len() == 1)
}

/// Records what the migration waits for if no instance drives it because none has its plan.
pub(crate) async fn report_missing_plan(
    ledger: &Ledger,
    instance: i64,
    migration: i32,
) -> Result<(), sqlx::Error> {
    let statement = format!(
        concat!(
            "update cutover.migrations set waits_for = '{reason}', waits_since = clock_timestamp() \
             where id = {migration} and ended_at is null and waits_for is distinct from '{reason}' and ",
            has_old_side!(),
            " and ",
            is_free!()
        ),
        instance = instance,
        migration = migration,
        reason = MISSING_PLAN
    );
    ledger.ask::<()>(statement).await?;
    Ok(())
}

/// It is put into a statement without quoting, so it has no quotation mark.
const MISSING_PLAN: &str = "an instance with the plan of this migration: the builds that are running declare the \
     migration without one; to unblock: deploy a build that declares the plan";
