use std::fmt;

use async_trait::async_trait;
use sqlx::PgConnection;

use crate::migration::catalog::OldSide;
use crate::migration::phase::{SchemaState, Target, Task};
use crate::migration::runtime::Migration;

/// Where a migration's desired phase comes from.
///
/// Asked by the driver several times a second, so it has to answer from memory.
pub trait DesiredPhase: Send + Sync + fmt::Debug {
    /// What a person wants at this moment, or `None` to leave it to what was asked for in the ledger by SQL
    /// or command line.
    fn target(&self) -> Option<Target>;

    /// Who is named in the history as the one who wanted it.
    fn actor(&self) -> &str;
}

/// Leaves the desired phase to the ledger: column `desired` of `cutover.migrations`, set by SQL or from the
/// command line.
#[derive(Debug, Clone, Copy, Default)]
pub struct FromLedger;

impl DesiredPhase for FromLedger {
    fn target(&self) -> Option<Target> {
        None
    }

    fn actor(&self) -> &str {
        "ledger"
    }
}

/// Why a piece of work did not come to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The migration left the phase that the work belongs to; it is taken up again when the phase comes back.
    #[error("the migration has left the phase that this work belongs to")]
    PhaseLeft,
    /// The work can't be done as it is described.
    #[error("{0}")]
    Refused(String),
    /// The work can't be done just now, because of somebody else who is in the way, or a server that is away.
    #[error("{0}")]
    NotNow(String),
    /// An operation at the current epoch failed.
    #[error(transparent)]
    Operation(#[from] crate::migration::runtime::Error),
}

impl From<sqlx::Error> for PlanError {
    fn from(error: sqlx::Error) -> Self {
        Self::Operation(error.into())
    }
}

/// What a migration does to schema and data. The driver says when.
#[async_trait]
pub trait Plan: Send + Sync + fmt::Debug {
    /// What each task would execute, for people to read: `cutover plan` shows it. Nothing by default.
    fn sql(&self) -> Vec<(Task, String)> {
        Vec::new()
    }

    /// What [`Task::Contract`] drops, for `cutover plan` to say what depends on it. Nothing by default.
    fn old_side(&self) -> Option<OldSide> {
        None
    }

    /// Looks at the schema.
    ///
    /// # Errors
    ///
    /// The database's.
    async fn schema_state(&self, connection: &mut PgConnection) -> Result<SchemaState, sqlx::Error>;

    /// Does a piece of work, or goes on with it where an earlier attempt stopped, on this instance or another.
    ///
    /// Every transaction on the data has to be one of `migration`'s, and the last one records the outcome in
    /// the ledger. Two instances may be at it at once for a short while when one was taken for dead.
    ///
    /// # Errors
    ///
    /// A [`PlanError`]; the driver tries again later.
    ///
    /// # Cancel safety
    ///
    /// Must be safe to drop at any await: it is when the instance stops being the driver.
    async fn run(&self, task: Task, migration: &Migration) -> Result<(), PlanError>;
}
