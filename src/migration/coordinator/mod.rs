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
//! | [`term`](DriverOptions::leadership_lease) | 5 s | a dead driver is replaced within it, and one slow answer does not cost it the office |
//! | [`soak`](MigrationSpec::soak) | a day | what is read once a day has been read once before the old side is dropped |
//! | [`quiet`](MigrationSpec::external_write_quiet_period) | a minute | for strangers whose writes could not be copied; a job that runs more seldom needs more |

mod agent;
mod driver;
mod follower;
mod plan;
mod publish;
mod reconcile;
mod spec;
mod state;

pub use agent::Agent;
pub(super) use agent::check;
pub use driver::DriverOptions;
pub(super) use follower::Entry;
pub use plan::{DesiredPhase, FromLedger, Plan, PlanError};
pub use spec::MigrationSpec;
pub(super) use state::{Counted, members, named};
