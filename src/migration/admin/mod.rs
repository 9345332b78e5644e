//! What people ask of a migration and what they see of it.

mod commands;
mod external_writes;
mod incompatible;
mod pauses;
mod repairs;
mod reports;
mod steps;

pub use commands::{AdminError, approve, set_phase};
pub use external_writes::{ExternalWriteReport, strangers};
pub use incompatible::incompatible_builds;
pub use pauses::{pause_work, resume_work};
pub use repairs::{RepairReport, repairs, retry_repairs, unrepaired};
pub use reports::{
    BadRow, Difference, Event, InstanceReport, MigrationReport, WorkReport, bad_rows, differences, history,
    report,
};
pub use steps::{Need, PlanReport, StepReport, plan};
