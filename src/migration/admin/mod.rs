//! Commands and reports about migrations: the functions behind the command line.
//!
//! Every function takes the [`Ledger`](crate::ledger::Ledger) and the name of a migration, as `name` or, if several fleets
//! use that name, as `fleet/name`.

mod builds;
mod commands;
#[cfg(feature = "console")]
mod details;
mod endings;
mod error;
mod plan;
mod reports;
mod rollback;
mod runbook;

pub use builds::incompatible_builds;
pub(crate) use builds::{BuildFindings, examine_builds};
pub use commands::{Actor, approve, pause_work, resume_work, retry_repairs, set_phase};
#[cfg(feature = "console")]
pub(crate) use details::{Details, details};
pub use endings::{EndReport, abandon, baseline, finish, forget};
pub use error::AdminError;
pub use plan::{MigrationFiles, Need, PlanReport, StepReport, migration_files, plan};
pub use reports::{
    BadRow, Difference, Event, ExternalWriteReport, InstanceReport, MigrationReport, RepairReport,
    WorkReport, bad_rows, count_repairs, differences, external_writes, history, repairs, report,
};
pub use rollback::{RollbackReport, RollbackStep, RollbackWork, rollback};
pub use runbook::runbook_sections;
