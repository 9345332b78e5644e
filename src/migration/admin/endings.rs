//! How people end a migration. Each command is recorded in the history with its actor.

use std::time::Duration;

use serde::Serialize;
use sqlx::{AssertSqlSafe, Executor, PgConnection};
use tokio::time::sleep;

use super::commands::Actor;
use super::error::{AdminError, find, find_and_lock};
use crate::ledger::commands::NamedMigration;
use crate::ledger::history::{self, NewEvent};
use crate::ledger::migrations::MigrationRow;
use crate::ledger::plans::side_name;
use crate::ledger::sides::SideRows;
use crate::ledger::{
    Ledger, endings, fleets, guard_triggers, is_lock_timeout, key_mirror, migrations, outlook, sides,
};
use crate::migration::catalog::{OldSide, quote, unquote};
use crate::migration::phase::Phase;

/// How long others may have to wait behind a schema change, and how often it is tried.
const LOCK_TIMEOUT: &str = "set local lock_timeout = '200ms'";
const ATTEMPTS: u32 = 6;
const PAUSE: Duration = Duration::from_millis(300);

/// What a command did, or would do, to end a migration.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct EndReport {
    /// The fleet that it belongs to.
    pub fleet: String,
    /// Its name.
    pub name: String,
    /// `finished`, `abandoned` or `archived`.
    pub ended_as: &'static str,
    /// Nothing was changed.
    pub dry_run: bool,
    /// The schema changes that were made.
    pub statements: Vec<String>,
    /// Statements that remove what is left.
    pub left: Vec<String>,
    /// What the archive keeps, as JSON.
    pub record: Option<serde_json::Value>,
}

impl EndReport {
    fn of(found: &NamedMigration, ended_as: &'static str, dry_run: bool) -> Self {
        let (fleet, name) = (found.fleet.clone(), found.name.clone());
        Self { fleet, name, ended_as, dry_run, statements: Vec::new(), left: Vec::new(), record: None }
    }
}

/// Records that a migration in `contract` is finished, after a person has dropped the old side.
///
/// The driver does so by itself while an instance with the plan is running. `dry_run` checks everything and changes nothing.
///
/// # Errors
///
/// [`AdminError`]; [`AdminError::CannotEnd`] in any other phase, or while the old side exists.
///
/// # Cancel safety
///
/// Safe: it is recorded, or it is not.
pub async fn finish(
    ledger: &Ledger,
    migration: &str,
    actor: impl Into<Actor<'_>>,
    dry_run: bool,
) -> Result<EndReport, AdminError> {
    let Actor { name: actor, reason } = actor.into();
    let mut tx = ledger.begin().await?;
    let (found, row) = locked(&mut tx, migration).await?;
    let name = &found.name;
    let mut reasons = Vec::new();
    if found.phase != Phase::Contract.name() {
        reasons.push(format!(
            "it is in `{}`, and a migration can be finished in `contract` only; move it there with `cutover contract {name}`",
            found.phase
        ));
    } else if !row.drained {
        reasons.push(in_use(name));
    }
    // In an earlier phase, it must not be dropped, so the text does not advise it.
    let old = match found.phase == Phase::Contract.name() {
        true => existing_old_side(&mut tx, &found).await?,
        false => None,
    };
    if let Some(old) = old {
        let drop =
            drop_statement(&old.table, &old.columns.iter().map(|column| quote(column)).collect::<Vec<_>>());
        reasons.push(format!("the old side still exists; drop it with `{drop}`"));
    }
    refuse(&found, reasons)?;
    endings::finish(&mut tx, found.id, actor, reason).await?;
    end(tx, dry_run).await?;
    Ok(EndReport::of(&found, "finished", dry_run))
}

/// Records that a migration is finished from the start, in a database that was created with the new side only.
///
/// If the migration is not in the ledger yet, `migration` must name its fleet too: `fleet/name`. Instances with a plan do
/// this by themselves; the command is for builds without one, and for databases that are prepared before the first start.
///
/// # Errors
///
/// [`AdminError`]; [`AdminError::CannotEnd`] if the migration has left `off` before, or the old side exists.
///
/// # Cancel safety
///
/// Safe: it is recorded, or it is not.
pub async fn baseline(
    ledger: &Ledger,
    migration: &str,
    actor: impl Into<Actor<'_>>,
    dry_run: bool,
) -> Result<EndReport, AdminError> {
    let Actor { name: actor, reason } = actor.into();
    let mut tx = ledger.begin().await?;
    if let Some((fleet, name)) = migration.split_once('/') {
        fleets::ensure(&mut tx, fleet).await?;
        migrations::register(&mut tx, fleet, name).await?;
    }
    let (found, _) = locked(&mut tx, migration).await?;
    let mut reasons = Vec::new();
    if let Some(old) = existing_old_side(&mut tx, &found).await? {
        reasons.push(format!(
            "the old side exists ({}), so it is an ordinary migration; run it with `cutover expand {}`",
            old_side_name(&old),
            found.name
        ));
    }
    if !endings::baseline(&mut tx, found.id, actor, reason).await? {
        reasons.push(format!(
            "it is in `{}` at epoch {}, and only a migration that never left `off` can be finished from the start",
            found.phase, found.epoch
        ));
    }
    refuse(&found, reasons)?;
    end(tx, dry_run).await?;
    Ok(EndReport::of(&found, "finished", dry_run))
}

/// Gives up the new side of a migration in `off`: removes the guard trigger, drops what `expand` made if `drop_new_side`,
/// and records that the migration is abandoned. Builds that still declare it use the old side.
///
/// The database role needs the rights of the table's owner.
///
/// # Errors
///
/// [`AdminError`]; [`AdminError::CannotEnd`] in any other phase.
///
/// # Cancel safety
///
/// Safe: all of it is done, or nothing.
pub async fn abandon(
    ledger: &Ledger,
    migration: &str,
    drop_new_side: bool,
    actor: impl Into<Actor<'_>>,
    dry_run: bool,
) -> Result<EndReport, AdminError> {
    let Actor { name: actor, reason } = actor.into();
    let mut attempt = 1;
    loop {
        let mut tx = ledger.begin().await?;
        let (found, row) = locked(&mut tx, migration).await?;
        let name = &found.name;
        let mut reasons = Vec::new();
        if found.phase != Phase::Off.name() {
            reasons.push(format!(
                "it is in `{}`, and a migration can be abandoned in `off` only; move it there with \
                 `cutover set-phase {name} off`",
                found.phase
            ));
        } else if !row.drained {
            reasons.push(in_use(name));
        }
        refuse(&found, reasons)?;
        let mut report = EndReport::of(&found, "abandoned", dry_run);
        if let Some(sides) = sides::find(&mut tx, found.id).await? {
            let second = key_mirror::targets(&mut tx, found.id).await?;
            (report.statements, report.left) = removal(found.id, &sides, &second, drop_new_side);
        }
        endings::abandon(&mut tx, found.id, actor, reason).await?;
        if !dry_run {
            tx.execute(LOCK_TIMEOUT).await?;
            match tx.execute(AssertSqlSafe(report.statements.join(";\n"))).await {
                Ok(_) => {}
                Err(error) if is_lock_timeout(&error) && attempt < ATTEMPTS => {
                    tx.rollback().await?;
                    attempt += 1;
                    sleep(PAUSE).await;
                    continue;
                }
                Err(error) => return Err(error.into()),
            }
        }
        end(tx, dry_run).await?;
        return Ok(report);
    }
}

/// Moves everything about an ended migration to table `cutover.archive`, as JSON. Its name can then be used again. The last
/// event of the archived history is `archived`, with the actor and the reason.
///
/// # Errors
///
/// [`AdminError`]; [`AdminError::CannotEnd`] if it has not ended, or an instance that is running still declares it.
///
/// # Cancel safety
///
/// Safe: it is archived, or it is not.
pub async fn forget(
    ledger: &Ledger,
    migration: &str,
    actor: impl Into<Actor<'_>>,
    dry_run: bool,
) -> Result<EndReport, AdminError> {
    let Actor { name: actor, reason } = actor.into();
    let mut tx = ledger.begin().await?;
    let found = find_and_lock(&mut tx, migration).await?;
    fleets::lock_for_move(&mut tx, &found.fleet).await?;
    let mut reasons = Vec::new();
    if found.ended_as.is_none() {
        reasons.push(format!(
            "it is in `{}` and has not ended; end it first with `cutover contract {name}` or, in `off`, with `cutover abandon {name}`",
            found.phase,
            name = found.name
        ));
    }
    let declared_by = endings::declared_by(&mut tx, found.id).await?;
    if !declared_by.is_empty() {
        reasons.push(format!(
            "running instances declare it ({}); first deploy a build that leaves it out",
            declared_by.join(", ")
        ));
    }
    refuse(&found, reasons)?;
    let (fleet, migration, epoch) = (&found.fleet, &found.name, found.epoch);
    history::record(&mut tx, &NewEvent { fleet, migration, event: "archived", epoch, actor, reason }).await?;
    let record = endings::record(&mut tx, found.id).await?;
    endings::archive(&mut tx, found.id, actor, &record).await?;
    end(tx, dry_run).await?;
    let mut report = EndReport::of(&found, "archived", dry_run);
    report.record = serde_json::from_str(&record).ok();
    Ok(report)
}

/// The migration, with the fleet's moves locked out. Refuses one that has ended.
async fn locked(tx: &mut PgConnection, name: &str) -> Result<(NamedMigration, MigrationRow), AdminError> {
    sides::follow_restored(tx).await?;
    // The order of the locks is that of a move: the fleet's row first.
    let fleet = find(tx, name).await?.fleet;
    fleets::lock_for_move(tx, &fleet).await?;
    let found = find_and_lock(tx, name).await?;
    found.refuse_if_ended()?;
    let row = migrations::load(tx, &found.fleet, &found.name).await?;
    Ok((found, row))
}

fn in_use(name: &str) -> String {
    format!("its previous epoch is still in use; `cutover explain {name}` says by whom")
}

fn refuse(found: &NamedMigration, reasons: Vec<String>) -> Result<(), AdminError> {
    if reasons.is_empty() {
        return Ok(());
    }
    Err(AdminError::CannotEnd { name: found.name.clone(), reasons })
}

async fn end(tx: sqlx::Transaction<'_, sqlx::Postgres>, dry_run: bool) -> Result<(), sqlx::Error> {
    if dry_run { tx.rollback().await } else { tx.commit().await }
}

/// The old side, if it exists: the one that `expand` recorded, else the one that a build published.
async fn existing_old_side(
    tx: &mut PgConnection,
    found: &NamedMigration,
) -> Result<Option<OldSide>, sqlx::Error> {
    if let Some(SideRows { old, .. }) = sides::find(tx, found.id).await? {
        let is_kept = old.columns == [sides::TABLE_ITSELF];
        let there = old.table.filter(|_| old.is_there && !is_kept);
        return Ok(there.map(|table| OldSide {
            table,
            columns: old.columns.iter().map(|column| unquote(column)).collect(),
        }));
    }
    let published = outlook::outlook(tx, found.id).await?;
    let Some(table) = published.old_table else { return Ok(None) };
    let old = OldSide { table, columns: published.old_columns.unwrap_or_default() };
    Ok(old.dependents(tx).await?.map(|_| old))
}

fn old_side_name(old: &OldSide) -> String {
    side_name(&old.table, &old.columns)
}

/// The statement that drops a table or some of its columns (all quoted).
fn drop_statement(table: &str, columns: &[String]) -> String {
    let drops: Vec<String> = columns.iter().map(|column| format!("drop column {column}")).collect();
    match &*drops {
        [] => format!("drop table {table}"),
        drops => format!("alter table {table} {}", drops.join(", ")),
    }
}

/// The statements that remove what `expand` made, and those that are left to a person. `second`: columns of any table that a
/// trigger has kept equal to a key.
fn removal(
    id: i32,
    sides: &SideRows,
    second: &[(String, String)],
    drop_new_side: bool,
) -> (Vec<String>, Vec<String>) {
    let mut statements = Vec::new();
    if let Some(table) = &sides.old.table
        && !sides.old.is_index
    {
        statements.push(guard_triggers::disarm(table, &id.to_string()));
    }
    let new = sides.new.table.as_ref().filter(|_| sides.new.made && sides.new.is_there);
    let Some(table) = new else { return (statements, Vec::new()) };
    let mut drops = vec![drop_statement(table, &sides.new.columns)];
    let others = second.iter().filter(|(other, column)| {
        other != table || !sides.new.columns.iter().any(|one| unquote(one) == unquote(column))
    });
    drops.extend(others.map(|(table, column)| drop_statement(table, std::slice::from_ref(column))));
    if drop_new_side {
        statements.extend(drops);
        (statements, Vec::new())
    } else {
        (statements, drops)
    }
}
