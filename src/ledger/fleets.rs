//! Table `fleets`: one row per set of instances that move together.

use sqlx::PgConnection;

use super::unprepared;

/// Inserts the fleet unless it exists.
pub(crate) async fn ensure(tx: &mut PgConnection, fleet: &str) -> Result<(), sqlx::Error> {
    unprepared::query("insert into cutover.fleets (name) values ($1) on conflict (name) do nothing")
        .bind(fleet)
        .execute(tx)
        .await?;
    Ok(())
}

/// Until the transaction ends, no instance is admitted to the fleet and no other transaction moves its migrations.
pub(crate) async fn lock_for_move(tx: &mut PgConnection, fleet: &str) -> Result<(), sqlx::Error> {
    unprepared::query("select name from cutover.fleets where name = $1 for no key update")
        .bind(fleet)
        .execute(tx)
        .await?;
    Ok(())
}

/// Until the transaction ends, no migration of the fleet moves. Other instances can be admitted.
pub(crate) async fn lock_for_admission(tx: &mut PgConnection, fleet: &str) -> Result<(), sqlx::Error> {
    unprepared::query("select name from cutover.fleets where name = $1 for share")
        .bind(fleet)
        .execute(tx)
        .await?;
    Ok(())
}
