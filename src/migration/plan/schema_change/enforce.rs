//! The steps through which the server comes to refuse what the change forbids, and their undoing.

use sqlx::PgConnection;

use super::addition::{Addition, ForeignKey};
use super::description::{Description, Removal};
use super::found::{Built, Table};
use super::inspection::writers;
use super::rows::violations;
use crate::ledger::{begin_work, guard_triggers, sides, unprepared, write_watch};
use crate::migration::batch::begin;
use crate::migration::catalog::{PlanProblem, beside, quote, resolve};
use crate::migration::coordinator::PlanError;
use crate::migration::phase::Phase;
use crate::migration::plan::refusal::refuse;
use crate::migration::plan::unguarded::gone_of;
use crate::migration::runtime::Migration;
use crate::migration::schema::{alter, drop_index, ensure_indexes, run_unfenced};

/// Adds the constraints, each without a long lock, after a check of all rows.
pub(super) async fn enforce(plan: &Description, migration: &Migration) -> Result<(), PlanError> {
    let mut tx = begin(&plan.pool, &[Phase::Switch], migration).await?;
    let table = found(plan, migration, &mut tx).await?;
    let built = plan.built(&mut tx, &table, migration.id()).await?;
    // A constraint would refuse their next write, and not the step to `retire` only. `before_step` names them.
    let waits =
        !built.iter().any(|one| one.is_present) && !writers(plan, migration.id(), &mut tx).await?.is_empty();
    tx.rollback().await?;
    if waits {
        return Err(PlanError::NotNow(String::new()));
    }
    // A constraint that some row violates would refuse every later write of that row.
    refuse(&violations(plan, &table, None, &mut *begin_work(&plan.pool).await?).await?)?;
    let id = migration.id().to_string();
    for (number, (addition, built)) in plan.additions.iter().zip(built).enumerate() {
        if built.is_in_force(addition) {
            continue;
        }
        let name = addition.name(&id, number);
        match addition {
            Addition::ForeignKey(key) if table.is_partitioned => {
                partitioned_foreign_key(plan, key, &table, migration).await?;
            }
            _ => match addition.index() {
                Some(index) => ensure_indexes(&plan.pool, &table.name, &[index], migration).await?,
                None => add(plan, addition, &table.name, &name, built, migration).await?,
            },
        }
        tracing::info!(
            migration = migration.name(),
            constraint = addition.text(),
            "the server refuses what the change forbids"
        );
    }
    Ok(())
}

/// Adds a constraint that refuses new rows at once, and then checks the rows that are there.
async fn add(
    plan: &Description,
    addition: &Addition,
    table: &str,
    name: &str,
    built: Built,
    migration: &Migration,
) -> Result<(), PlanError> {
    if let (false, Some(add)) = (built.is_present, addition.add(table, name)) {
        alter(&plan.pool, table, migration, Phase::Switch, &add).await?;
    }
    validate(plan, table, name, migration).await
}

async fn validate(
    plan: &Description,
    table: &str,
    name: &str,
    migration: &Migration,
) -> Result<(), PlanError> {
    let validate = format!("alter table {table} validate constraint {}", quote(name));
    run_unfenced(&plan.pool, &validate, migration).await
}

/// Until version 18 the server has no `NOT VALID` for a foreign key of a partitioned table. So each partition gets the
/// key first. The one of the table then finds those and checks no row.
async fn partitioned_foreign_key(
    plan: &Description,
    key: &ForeignKey,
    table: &Table,
    migration: &Migration,
) -> Result<(), PlanError> {
    let addition = Addition::ForeignKey(key.clone());
    for leaf in &table.leaves {
        let mut tx = begin(&plan.pool, &[Phase::Switch], migration).await?;
        let is_valid = of_leaf(&mut tx, leaf, &key.name).await?;
        tx.rollback().await?;
        if let (None, Some(add)) = (is_valid, addition.add(leaf, &key.name)) {
            alter(&plan.pool, leaf, migration, Phase::Switch, &add).await?;
        }
        if is_valid != Some(true) {
            validate(plan, leaf, &key.name, migration).await?;
        }
    }
    alter(&plan.pool, &table.name, migration, Phase::Switch, &key.add_to_parent(&table.name)).await
}

/// Whether a partition's own constraint is validated. `None` if it has none of this name.
async fn of_leaf(connection: &mut PgConnection, leaf: &str, name: &str) -> Result<Option<bool>, sqlx::Error> {
    unprepared::query_scalar(
        "select convalidated from pg_constraint where conrelid = to_regclass($1) and conname = $2",
    )
    .bind(leaf)
    .bind(name)
    .fetch_optional(connection)
    .await
}

/// Drops the constraints again, in whatever phase the fleet is before `retire`.
pub(super) async fn relax(plan: &Description, migration: &Migration) -> Result<(), PlanError> {
    let phases = [Phase::Off, Phase::Expand, Phase::Backfill, Phase::Verify, Phase::Ramp, Phase::Switch];
    let mut tx = begin(&plan.pool, &phases, migration).await?;
    let phase = tx.phase();
    let table = found(plan, migration, &mut tx).await?;
    let built = plan.built(&mut tx, &table, migration.id()).await?;
    tx.rollback().await?;
    let id = migration.id().to_string();
    for (number, (addition, _)) in
        plan.additions.iter().zip(built).enumerate().filter(|(_, (_, built))| built.is_present)
    {
        let name = addition.name(&id, number);
        match addition {
            Addition::Unique { .. } => {
                let index = beside(&table.name, &name);
                drop_index(&plan.pool, &table.name, &index, phase, migration).await?;
            }
            _ => {
                let drop =
                    |table: &str| format!("alter table {table} drop constraint if exists {}", quote(&name));
                alter(&plan.pool, &table.name, migration, phase, &drop(&table.name)).await?;
                if matches!(addition, Addition::ForeignKey(_)) {
                    for leaf in &table.leaves {
                        alter(&plan.pool, leaf, migration, phase, &drop(leaf)).await?;
                    }
                }
            }
        }
        tracing::info!(
            migration = migration.name(),
            constraint = addition.text(),
            "the server no longer refuses what the change forbids"
        );
    }
    Ok(())
}

pub(super) async fn found(
    plan: &Description,
    migration: &Migration,
    connection: &mut PgConnection,
) -> Result<Table, PlanError> {
    plan.find(connection, Some(migration.id())).await?.ok_or_else(|| {
        PlanError::Refused(format!(
            "table {} does not exist any more; to fix: restore it, or `cutover abandon {}` in `off`",
            plan.table,
            migration.name()
        ))
    })
}

/// The statements that install the triggers which watch writers. Empty if there is nothing to see.
pub(super) async fn watch(
    plan: &Description,
    table: &Table,
    dropped_column: Option<&str>,
    migration: i32,
    connection: &mut PgConnection,
) -> Result<Option<String>, sqlx::Error> {
    let mut checks = Vec::new();
    for check in plan.checks() {
        checks.push(resolve(connection, &table.name, &[], &[check]).await?.select);
    }
    let Some(watch) = plan.watch(&table.name, dropped_column, &checks) else { return Ok(None) };
    let fingerprint: String =
        unprepared::query_scalar("select md5($1)").bind(plan.as_text()).fetch_one(connection).await?;
    Ok(Some(watch.install(&migration.to_string(), &table.leaves, &fingerprint)))
}

/// The triggers that watch writers and that others dropped.
pub(super) async fn unwatched(
    plan: &Description,
    migration: i32,
    connection: &mut PgConnection,
) -> Result<Option<PlanProblem>, sqlx::Error> {
    let Some(recorded) = sides::find(&mut *connection, migration).await? else { return Ok(None) };
    // The names of columns do not matter here.
    let Some(watch) = plan.watch(&plan.table, Some("column"), &plan.checks()) else { return Ok(None) };
    let relation = match plan.removal {
        Some(Removal::Table | Removal::Column(_)) => recorded.old.relation,
        _ => recorded.new.relation,
    };
    let gone = guard_triggers::missing(connection, relation, &watch.names(&migration.to_string())).await?;
    if gone.is_empty() || !recorded.old.is_there {
        return Ok(None);
    }
    let effect = "so writers that the change would refuse are not seen";
    let remedy = "`cutover set-phase <migration> expand`, and then forward again, which installs them";
    Ok(Some(gone_of(&plan.table, &gone, effect, remedy)))
}

/// Whether the triggers that the change needs are installed.
pub(super) async fn is_watching(
    plan: &Description,
    relation: i64,
    migration: i32,
    connection: &mut PgConnection,
) -> Result<bool, sqlx::Error> {
    // The column's name does not matter here.
    if plan.watch(&plan.table, Some("column"), &[]).is_none() {
        return Ok(true);
    }
    write_watch::is_installed(connection, relation, migration, &plan.as_text()).await
}
