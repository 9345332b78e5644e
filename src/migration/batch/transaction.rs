//! How the transactions of long work begin, and when one is tried again.

use std::time::Duration;

use sqlx::{AssertSqlSafe, PgPool, Row};
use tokio::time::sleep;

use super::kind::PassKind;
use crate::ledger::is_lock_timeout;
use crate::migration::coordinator::PlanError;
use crate::migration::phase::Phase;
use crate::migration::runtime::{Error, Migration, PinnedTx};

/// How long a batch waits for a row before it lets go of those it has: well below the second after which the
/// server looks for deadlocks, so that in one with a batch it is the batch that gives way. A process that is stopped
/// in the middle of a batch holds its rows and its range for the second of the two at most.
pub(crate) const LIMITS: &str =
    "set local lock_timeout = '100ms'; set local idle_in_transaction_session_timeout = '10s'; ";
/// Batches that may fail in a row, for reasons that pass, before the work is given back to the driver.
pub(crate) const FAILURES: u32 = 50;
/// How often paused work looks whether it may go on.
pub(crate) const PAUSED: Duration = Duration::from_millis(250);

/// Begins a transaction of one of the phases that the work belongs to.
pub(crate) async fn begin(
    pool: &PgPool,
    phases: &[Phase],
    migration: &Migration,
) -> Result<PinnedTx, PlanError> {
    let tx = migration.begin(pool).await?;
    if phases.contains(&tx.phase()) { Ok(tx) } else { Err(PlanError::PhaseLeft) }
}

/// The same for a pass over the rows, as soon as nobody holds that up any more. It waits outside of any transaction
/// and notices when the phase is left.
pub(crate) async fn begin_unpaused(
    pool: &PgPool,
    sweep: PassKind,
    migration: &Migration,
    limits: &str,
) -> Result<PinnedTx, PlanError> {
    let id = migration.id();
    // One message: a batch pays no round trip for it.
    let statement = format!("{limits}select paused_at is not null from cutover.migrations where id = {id}");
    loop {
        let mut tx = begin(pool, sweep.phases(), migration).await?;
        let rows = sqlx::raw_sql(AssertSqlSafe(&*statement)).fetch_all(&mut *tx).await?;
        if !rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get::<bool, _>(0)? {
            return Ok(tx);
        }
        tx.rollback().await?;
        sleep(PAUSED).await;
    }
}

/// Whether the same batch may succeed a little later.
pub(crate) fn passes(error: &Error) -> bool {
    error.is_retryable() || matches!(error, Error::Database(error) if is_lock_timeout(error))
}

/// A moment for whoever was in the way, before the same is tried again.
pub(crate) async fn give_way() {
    sleep(Duration::from_millis(10 + fastrand::u64(0..40))).await;
}
