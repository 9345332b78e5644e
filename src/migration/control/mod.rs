//! Epochs: how operations are pinned to one, how the database refuses a closed one, and how the fleet moves
//! from one to the next.

mod agent;
mod atomics;
mod driver;
mod error;
mod fence;
mod follower;
mod gate;
mod migration;
mod notices;
mod people;
mod plan;
mod turn;
mod view;

pub use agent::Agent;
pub use driver::DriverOptions;
pub use error::Error;
pub use fence::{Isolation, PinnedTx};
pub use gate::Pin;
pub use migration::{Migration, Spec};
pub use people::{
    AskError, Event, InstanceReport, MigrationReport, WorkReport, approve, desire, history, report,
};
pub use plan::{DesiredPhase, FromLedger, Plan, PlanError};

pub use super::phase::{Facts, Task};
