//! Table `acknowledgements`: what each instance declared about each migration, and the epoch that it works at.

use sqlx::{FromRow, PgConnection};

use super::{Ledger, unprepared};

/// Records that the instance takes part in the migration, with the phases that its build can run.
pub(crate) async fn declare(
    tx: &mut PgConnection,
    instance: i64,
    migration: i32,
    min_phase: &str,
    max_phase: &str,
) -> Result<(), sqlx::Error> {
    unprepared::query(
        "insert into cutover.acknowledgements (instance_id, migration_id, min_phase, max_phase) \
         values ($1, $2, $3, $4) on conflict (instance_id, migration_id) do update set epoch = 0",
    )
    .bind(instance)
    .bind(migration)
    .bind(min_phase)
    .bind(max_phase)
    .execute(tx)
    .await?;
    Ok(())
}

/// An epoch of a migration.
#[derive(Debug, Clone, Copy, FromRow)]
pub(crate) struct Acknowledged {
    pub(crate) migration_id: i32,
    pub(crate) epoch: i32,
}

/// Acknowledges epochs, each a migration's id, epoch and phase. Returns those that were recorded.
///
/// An epoch that the ledger does not have with that phase is not recorded. After a failover to a lagging standby the same
/// number can stand for another phase. The values are numbers and names of phases, so they need no quoting.
pub(crate) async fn record(
    ledger: &Ledger,
    instance: i64,
    epochs: &[(i32, i32, &str)],
) -> Result<Vec<Acknowledged>, sqlx::Error> {
    let epochs: Vec<String> =
        epochs.iter().map(|(migration, epoch, phase)| format!("({migration}, {epoch}, '{phase}')")).collect();
    let statement = format!(
        "update cutover.acknowledgements a set epoch = e.epoch, older_open = 0, waits_since = null \
         from cutover.epochs e \
         where a.instance_id = {instance} and a.migration_id = e.migration_id and a.epoch < e.epoch \
           and (e.migration_id, e.epoch, e.phase) in ({}) \
         returning a.migration_id, a.epoch",
        epochs.join(", ")
    );
    ledger.ask(statement).await
}

/// Records how many operations at older epochs the acknowledgement waits for.
pub(crate) async fn report_older_open(
    tx: &mut PgConnection,
    instance: i64,
    migration: i32,
    count: i32,
) -> Result<(), sqlx::Error> {
    unprepared::query(
        "update cutover.acknowledgements set older_open = $3, \
                waits_since = coalesce(waits_since, clock_timestamp()) \
         where instance_id = $1 and migration_id = $2",
    )
    .bind(instance)
    .bind(migration)
    .bind(count)
    .execute(tx)
    .await?;
    Ok(())
}

/// An admitted instance, with what it declared about one migration.
#[derive(Debug, FromRow)]
pub(crate) struct MemberRow {
    pub(crate) name: String,
    /// `None`, like `max_phase`: its build did not declare the migration.
    pub(crate) min_phase: Option<String>,
    pub(crate) max_phase: Option<String>,
    pub(crate) epoch: i32,
    pub(crate) older_open: i32,
    /// Seconds for which it has waited for operations at older epochs.
    pub(crate) waits: Option<i64>,
}

/// The admitted instances of the fleet. `with_lease_only` leaves out those whose lease has ended and that no driver has
/// removed yet.
pub(crate) async fn members(
    connection: &mut PgConnection,
    fleet: &str,
    migration: i32,
    with_lease_only: bool,
) -> Result<Vec<MemberRow>, sqlx::Error> {
    unprepared::query_as(
        "select i.name, a.min_phase, a.max_phase, coalesce(a.epoch, 0) as epoch, \
                coalesce(a.older_open, 0) as older_open, \
                extract(epoch from clock_timestamp() - a.waits_since)::bigint as waits \
         from cutover.instances i \
         left join cutover.acknowledgements a on a.instance_id = i.id and a.migration_id = $2 \
         where i.fleet = $1 and i.admitted and (not $3 or i.lease_until >= clock_timestamp()) \
         order by i.name, i.id",
    )
    .bind(fleet)
    .bind(migration)
    .bind(with_lease_only)
    .fetch_all(connection)
    .await
}
