//! Epochs: how operations are pinned to one, how the database refuses a closed one, and how the fleet moves
//! from one to the next.

mod agent;
mod atomics;
mod driver;
mod error;
mod fence;
mod fitness;
mod follower;
mod gate;
#[cfg(test)]
mod gate_tests;
mod migration;
mod pauses;
mod people;
mod plan;
mod repairs;
mod strangers;
mod turn;
mod view;
mod work_metrics;

pub use agent::Agent;
pub use driver::DriverOptions;
pub use error::{Error, is_retryable};
#[cfg(feature = "deadpool")]
pub use fence::DeadpoolTx;
pub use fence::{FencedPool, FencedTransaction, Isolation, PinnedTx, SqlxTx};
pub use fitness::misfits;
pub use gate::Pin;
pub use migration::{Migration, Spec};
pub use pauses::{pause_work, resume_work};
pub use people::{
    AskError, BadRow, Difference, Event, InstanceReport, MigrationReport, WorkReport, approve, bad_rows,
    desire, differences, history, report,
};
pub use plan::{DesiredPhase, FromLedger, Plan, PlanError};
pub use repairs::{RepairReport, repairs, retry_repairs};
pub use strangers::{StrangerReport, strangers};

pub use super::phase::{Facts, Task};
