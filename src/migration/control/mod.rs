//! Epochs: how operations are pinned to one, how the database refuses a closed one, and how the fleet moves
//! from one to the next.
//!
//! # The hazard
//!
//! "Only safe after all instances run the new code" is a comment that nothing enforces: a pod that was paused through
//! two steps wakes up and writes as it did before. Here every operation holds a [`Pin`], every write transaction begins
//! with the fence, and the driver opens an epoch only when the one before the last is closed.
//!
//! # Defaults, and why
//!
//! | option | default | because |
//! |---|---|---|
//! | [`transaction_limit`](DriverOptions::transaction_limit) | 30 s | longer than a transaction of a service should be open; then its backend is terminated, where the role may do that, rather than the migration held up for ever |
//! | [`term`](DriverOptions::term) | 5 s | a dead driver is replaced within it, and one slow answer does not cost it the office |
//! | [`soak`](Spec::soak) | a day | what is read once a day has been read once before the old side is dropped |
//! | [`quiet`](Spec::quiet) | a minute | for strangers whose writes could not be copied; a job that runs more seldom needs more |

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
mod old_side;
mod pauses;
mod people;
mod plan;
mod repairs;
mod steps;
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
pub use old_side::OldSide;
pub use pauses::{pause_work, resume_work};
pub use people::{
    AskError, BadRow, Difference, Event, InstanceReport, MigrationReport, WorkReport, approve, bad_rows,
    desire, differences, history, report,
};
pub use plan::{DesiredPhase, FromLedger, Plan, PlanError};
pub use repairs::{RepairReport, repairs, retry_repairs, unrepaired};
pub use steps::{Need, PlanReport, StepReport, plan};
pub use strangers::{StrangerReport, strangers};
pub(crate) use strangers::{open_now as open_strangers, still_open as strangers_still_open};

pub use super::phase::{Facts, Task};
