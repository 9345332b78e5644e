//! What moves the fleet from one epoch to the next: an agent on each instance, and a driver on one of them.
//!
//! # The hazard
//!
//! "Only safe after all instances run the new code" is usually a comment that nothing enforces. A pod that was paused during
//! two steps resumes and writes as it did before. Here every operation holds a [`Pin`](crate::migration::Pin), every write
//! transaction begins with the fence, and the driver opens an epoch only after the one before the last is closed.
//!
//! # Defaults and reasons
//!
//! | option | default | why |
//! |---|---|---|
//! | [`transaction_limit`](DriverOptions::transaction_limit) | 30 s | longer than a transaction of a service should be open; after that its backend is terminated, so that the migration does not wait for it forever |
//! | [`leadership_lease`](DriverOptions::leadership_lease) | 5 s | a driver that died is replaced within this time, and one slow answer does not end the leadership |
//! | [`soak`](MigrationSpec::soak) | one day | a daily reader of the old side has run once before the drop |
//! | [`external_write_quiet_period`](MigrationSpec::external_write_quiet_period) | one minute | for external writes that could not be copied; a job that runs less often needs more |

mod admission;
mod agent;
mod driver;
mod entry;
mod follower;
mod guards;
mod look;
mod memory;
mod options;
mod plan;
mod reconcile;
mod retry;
mod spec;
mod state;
mod work;

pub(super) use admission::{schema_problem, would_baseline};
pub use agent::Agent;
pub(super) use entry::Entry;
pub use options::DriverOptions;
pub use plan::{DesiredPhase, FromLedger, Plan, PlanError, SidesPresent};
pub use spec::MigrationSpec;
pub(crate) use spec::check;
pub(super) use state::{Counted, members, parse_phase};
