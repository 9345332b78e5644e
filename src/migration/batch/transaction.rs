//! How the transactions of passes begin, and the pauses between them.

use std::time::Duration;

use sqlx::PgPool;
use tokio::time::sleep;

use super::kind::PassKind;
use crate::ledger::jobs;
use crate::migration::catalog::ROW_WORK_SETTINGS;
use crate::migration::coordinator::PlanError;
use crate::migration::phase::Phase;
use crate::migration::runtime::{Migration, PinnedTx};

/// How long a batch waits for a row before it releases the rows that it has locked. This is well below the second after
/// which the server looks for deadlocks, so in a deadlock with a batch it is the batch that fails. The second limit
/// releases the rows and the range of a process that is stopped in the middle of a batch.
pub(crate) const BATCH_LIMITS: &str =
    "set local lock_timeout = '100ms'; set local idle_in_transaction_session_timeout = '10s'; ";
/// How many batches in a row may fail for transient reasons before the error goes to the driver.
pub(crate) const MAX_FAILURES: u32 = 50;
/// How often paused work checks whether it may continue.
pub(crate) const PAUSE_POLL: Duration = Duration::from_millis(250);

/// Begins a transaction in one of these phases.
///
/// # Errors
///
/// [`PlanError::PhaseLeft`] in any other phase.
pub(crate) async fn begin(
    pool: &PgPool,
    phases: &[Phase],
    migration: &Migration,
) -> Result<PinnedTx, PlanError> {
    let tx = migration.begin_work(pool).await?;
    if phases.contains(&tx.phase()) { Ok(tx) } else { Err(PlanError::PhaseLeft) }
}

/// Begins a transaction of a pass, as soon as the migration is not paused. It waits outside of any transaction, and
/// returns when the phase is left.
///
/// Every statement on rows runs with [`ROW_WORK_SETTINGS`]: a row-level security policy that would hide rows is an error,
/// and expressions do not depend on the session.
pub(crate) async fn begin_unpaused(
    pool: &PgPool,
    kind: PassKind,
    migration: &Migration,
    limits: &str,
) -> Result<PinnedTx, PlanError> {
    let settings = format!("{}{limits}", *ROW_WORK_SETTINGS);
    loop {
        let mut tx = begin(pool, kind.phases(), migration).await?;
        if !jobs::is_paused(&mut tx, &settings, migration.id()).await? {
            return Ok(tx);
        }
        tx.rollback().await?;
        sleep(PAUSE_POLL).await;
    }
}

/// Waits a moment after a transient failure, so that the other transaction can finish.
pub(crate) async fn back_off() {
    sleep(Duration::from_millis(10 + fastrand::u64(0..40))).await;
}
