//! Feature flags: typed, decided once per request, right from the first request on.
//!
//! The hazards that this room removes:
//!
//! - A request that asks twice and gets two answers, because somebody moved the flag in between.
//!   [`FlagsLayer`] pins decisions to the request: the first one counts until it ends.
//! - A new instance that answers "off" to everything until the flag server was reached, although
//!   the code declares otherwise. Here the default of the [`Flag`] counts until then, or the
//!   last known state where one was kept ([`UnleashOptions::backup`]).
//! - A flag server that is away, mute, or answering with an error page. The last known state stays
//!   in use, [`Flags::is_fresh`] tells, and a [`Switch`] that steers a whole fleet reads
//!   [`Switch::Unknown`] instead of "off".
//!
//! [`Flags`] is the handle, [`Flag`] what code declares, [`Subject`] whom a decision is about,
//! [`Decisions`] what a request carries, [`GateLayer`] the fork in the road.

mod counters;
mod decisions;
mod error;
mod fixed;
mod flag;
mod gate;
mod handle;
mod layer;
mod names;
#[cfg(feature = "openfeature")]
mod openfeature;
#[cfg(all(test, feature = "openfeature"))]
mod openfeature_tests;
mod payload;
mod source;
mod subject;
#[cfg(test)]
mod tests;
#[cfg(feature = "unleash")]
mod unleash;

pub use decisions::Decisions;
pub use error::{FlagsError, OptionProblem};
pub use fixed::FixedFlag;
pub use flag::{Flag, PayloadKind, Switch, Variant};
pub use gate::{Gate, GateFuture, GateLayer};
pub use handle::Flags;
pub use layer::{FlagsLayer, FlagsService, MissingDecisions};
pub use payload::{Csv, Json};
pub use source::{Gap, Lack};
pub use subject::Subject;
#[cfg(all(feature = "unleash", feature = "redis"))]
pub use unleash::RedisBackup;
#[cfg(feature = "unleash")]
pub use unleash::{Backup, BackupError, FileBackup, PostgresBackup, UnleashOptions};
