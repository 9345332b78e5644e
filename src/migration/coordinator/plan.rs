use std::fmt;

use async_trait::async_trait;
use sqlx::PgConnection;

use crate::ledger::hint;
use crate::migration::catalog::{OldSide, PlanProblem};
use crate::migration::phase::{Phase, SchemaState, Target, Task};
use crate::migration::runtime::{Error, Migration, MirroredColumns};

/// Where a migration's desired phase comes from.
///
/// The driver calls it several times a second, so it must answer from memory.
pub trait DesiredPhase: Send + Sync + fmt::Debug {
    /// The desired phase at this moment. `None`: the one that was set in the ledger, by SQL or on the command line.
    fn target(&self) -> Option<Target>;

    /// The actor that the history names.
    fn actor(&self) -> &str;
}

/// Takes the desired phase from the ledger: column `desired` of `cutover.migrations`, set by SQL or on the command line.
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

/// Why a task failed. The driver retries it with growing pauses, whatever the reason.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The migration left the phase that the task belongs to. It runs again when that phase comes back.
    #[error("the migration has left the phase that this task belongs to")]
    PhaseLeft,
    /// The task cannot be done as it is described, or the schema or the data do not allow it.
    #[error("{0}")]
    Refused(String),
    /// The task cannot be done at the moment, because of another session's lock or a server that is unreachable.
    #[error("{0}")]
    NotNow(String),
    /// An operation at the current epoch failed.
    #[error(transparent)]
    Operation(#[from] Error),
}

impl PlanError {
    /// The error with what to do about it, where the library knows that.
    pub(super) fn advised(&self) -> String {
        match self {
            Self::Operation(Error::Database(error)) => format!("{self}{}", hint(error)),
            _ => self.to_string(),
        }
    }
}

impl From<sqlx::Error> for PlanError {
    fn from(error: sqlx::Error) -> Self {
        Self::Operation(error.into())
    }
}

/// Which sides of a migration exist in the database.
///
/// It can be built with a literal, because plans of users return it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SidesPresent {
    /// The old side exists.
    pub old: bool,
    /// The new side exists.
    pub new: bool,
}

/// What a migration does to schema and data. The driver decides when.
#[async_trait]
pub trait Plan: Send + Sync + fmt::Debug {
    /// The statements of each task, for people to read: `cutover plan` shows them. None by default.
    fn sql(&self) -> Vec<(Task, String)> {
        Vec::new()
    }

    /// The same, after a look at the database for what the description leaves open, such as the key of a table. As
    /// [`Plan::sql`] by default.
    async fn sql_of_database(&self) -> Vec<(Task, String)> {
        self.sql()
    }

    /// The statements of [`Task::Expand`] and [`Task::Contract`] for a team's own migration files, without those that only
    /// the library can run. None by default.
    fn files(&self) -> Vec<(Task, String)> {
        Vec::new()
    }

    /// What [`Task::Contract`] drops. `cutover plan` shows what depends on it. Nothing by default.
    ///
    /// If there is an old side, only instances that have a plan drive the migration.
    fn old_side(&self) -> Option<OldSide> {
        None
    }

    /// The columns whose writes the guard trigger mirrors for the service. None by default.
    #[doc(hidden)]
    fn mirrored_columns(&self) -> Option<MirroredColumns> {
        None
    }

    /// Finds every problem of the plan in the database, each with its remedy. Nothing by default. `migration` is the
    /// migration's id in the ledger, if it has one; `ledger` is a connection to the ledger's database.
    ///
    /// # Errors
    ///
    /// The database's error.
    ///
    /// # Cancel safety
    ///
    /// Must be safe: whatever it tries has to be rolled back.
    async fn problems(
        &self,
        migration: Option<i32>,
        ledger: &mut PgConnection,
    ) -> Result<Vec<PlanProblem>, sqlx::Error> {
        let _ = (migration, ledger);
        Ok(Vec::new())
    }

    /// What has to be changed about the tables before the migration takes the next step forward from `phase`: what was
    /// added since `expand`, and in `verify` what is attached to the old side and missing on the new one. Nothing by
    /// default. `migration` is the migration's id in the ledger.
    ///
    /// The driver asks several times a second, and may be given an answer that is a second old, except with `is_move`: then
    /// the answer decides about a move that is being made.
    ///
    /// # Errors
    ///
    /// The database's error.
    async fn before_step(
        &self,
        phase: Phase,
        migration: i32,
        is_move: bool,
        connection: &mut PgConnection,
    ) -> Result<Vec<PlanProblem>, sqlx::Error> {
        let _ = (phase, migration, is_move, connection);
        Ok(Vec::new())
    }

    /// What keeps the service's role from writing as it will after the next move forward from `phase`. Nothing by default.
    /// `migration` is the migration's id in the ledger.
    ///
    /// The driver calls it while such a move waits for something else, and, with `is_move`, right before the move. Then the
    /// writes are tried. It is outside of the move's transaction, so that no lock of the ledger is held.
    ///
    /// # Errors
    ///
    /// The database's error.
    ///
    /// # Cancel safety
    ///
    /// Must be safe: whatever it tries has to be rolled back.
    async fn before_move(
        &self,
        phase: Phase,
        migration: i32,
        is_move: bool,
    ) -> Result<Vec<PlanProblem>, sqlx::Error> {
        let _ = (phase, migration, is_move);
        Ok(Vec::new())
    }

    /// Guard triggers of the migration that are gone in this phase, from `backfill` to `retire`, each with what brings it back.
    /// None by default. `migration` is the migration's id in the ledger. `<migration>` in a remedy stands for its name.
    ///
    /// The driver shows them, also while the migration is at rest, and drops no old side meanwhile.
    ///
    /// # Errors
    ///
    /// The database's error.
    async fn unguarded(
        &self,
        phase: Phase,
        migration: i32,
        connection: &mut PgConnection,
    ) -> Result<Vec<PlanProblem>, sqlx::Error> {
        let _ = (phase, migration, connection);
        Ok(Vec::new())
    }

    /// Reads the state of the schema. `migration` is the migration's id in the ledger, if it has one. Not called any more
    /// once the old side is gone.
    ///
    /// # Errors
    ///
    /// The database's error.
    async fn schema_state(
        &self,
        migration: Option<i32>,
        connection: &mut PgConnection,
    ) -> Result<SchemaState, sqlx::Error>;

    /// Which sides exist now, also under another name than at first. Both by default.
    ///
    /// A migration that has just been declared, in a database that has only the new side, is finished from the start, if
    /// [`new_shape_doubt`](Self::new_shape_doubt) has nothing against it. A build is not admitted while the current phase needs a side that does not exist.
    ///
    /// # Errors
    ///
    /// The database's error.
    ///
    /// # Cancel safety
    ///
    /// Must be safe: it only reads.
    async fn sides_present(
        &self,
        migration: Option<i32>,
        connection: &mut PgConnection,
    ) -> Result<SidesPresent, sqlx::Error> {
        let _ = (migration, connection);
        Ok(SidesPresent { old: true, new: true })
    }

    /// Why a database that has only the new side may still not have been created with the new side only. `None`, the
    /// default: there is no reason. Called only for a migration for which nothing was made, where
    /// [`sides_present`](Self::sides_present) found the new side alone.
    ///
    /// With a problem, nothing is recorded and no build is admitted, until a person corrects the plan or runs
    /// `cutover baseline`.
    ///
    /// # Errors
    ///
    /// The database's error.
    ///
    /// # Cancel safety
    ///
    /// Must be safe: it only reads.
    async fn new_shape_doubt(&self) -> Result<Option<PlanProblem>, sqlx::Error> {
        Ok(None)
    }

    /// Runs a task, or continues it where an earlier attempt stopped, on this instance or another one.
    ///
    /// Every transaction on the data must be one of `migration`'s, and the last one records the result in the ledger.
    /// Two instances may run it at the same time for a short while, if one was taken for dead.
    ///
    /// # Errors
    ///
    /// A [`PlanError`]. The driver retries later.
    ///
    /// # Cancel safety
    ///
    /// Must be cancel safe at every await: the future is dropped when the instance stops driving.
    async fn run(&self, task: Task, migration: &Migration) -> Result<(), PlanError>;
}
