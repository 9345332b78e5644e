//! Feature flags: typed, decided once per request, right from the first request on.
//!
//! The hazards that this room removes:
//!
//! - A request that asks twice and gets two answers, because somebody moved the flag in between.
//!   [`FlagsLayer`] pins decisions to the request: the first one counts until it ends.
//! - A new instance that answers "off" to everything until the flag server was reached, although
//!   the code declares otherwise, or although everybody else has been "on" for weeks. Here the last
//!   known state counts where one is kept ([`UnleashOptions::backup`]: file, Postgres, Redis), and
//!   else the default of the [`Flag`]; await [`Flags::ready`] for a moment before serving.
//! - A flag server that is away, mute, or answering with an error page. The last known state stays
//!   in use, [`Flags::is_fresh`] tells, and a [`Switch`] that steers a whole fleet reads
//!   [`Switch::Unknown`] instead of "off".
//! - A flag that was renamed, archived or marked as stale while code still asks for it:
//!   [`Flags::coverage`] finds it, `cutover_flag_defaults_total` counts it.
//!
//! [`Flags`] is the handle, [`Flag`] what code declares, [`Subject`] whom a decision is about,
//! [`Decisions`] what a request carries, [`FlagRouterLayer`] the fork in the road. Flags come from an
//! Unleash server (feature `unleash`), from any OpenFeature provider (feature `openfeature`), or
//! from code (`Flags::fixed`).
//!
//! # Deployment caveat
//!
//! For as long as two builds run, both decide, and a rollout that is sticky by user gives a user one
//! answer in both. One that is sticky by nothing (no user, no session) draws lots for every request.
//! And instances don't hear of a toggle at the same moment: for a second or two some have it and some
//! have not. A flag may therefore choose between two ways of *doing* something, but not between two
//! truths; that is what a migration is for.
//!
//! # Defaults, and why
//!
//! | option | default | because |
//! |---|---|---|
//! | [`interval`](UnleashOptions::interval) | 1 s | the server itself looks once a second, so a toggle is everywhere within 2.1 s; an unchanged state is an answer without a body |
//! | [`time_limit`](UnleashOptions::time_limit) | 3 s | a mute server must not hold the poller up, a slow one shall still be heard |
//! | [`stale_after`](UnleashOptions::stale_after) | 30 s | several tries fit in, and no person who moves a migration by a flag waits longer to hear that it is not heard |
//! | [`metrics_interval`](UnleashOptions::metrics_interval) | 60 s | what Unleash's own clients use; the rest is sent by [`Flags::close`] |
//! | [`backup`](UnleashOptions::backup) | none | where a state may lie is the application's to say: strategies may name users |
//!
//! # Differences from Unleash's client
//!
//! The engine is theirs (`unleash-yggdrasil`) and passes the open client specification through this
//! front. What is around it is not: theirs answers `false` before its first fetch whatever default was
//! given, waits for a mute server without limit, applies the body of an error, downloads and compiles
//! an unchanged state at every poll, takes a lock per decision, and loses what it counted last.

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
pub use gate::{FlagRouter, FlagRouterFuture, FlagRouterLayer};
pub use handle::Flags;
pub use layer::{FlagsLayer, FlagsService, MissingDecisions};
pub use payload::{Csv, Json};
pub use source::{FlagProblem, FlagProblemKind};
pub use subject::Subject;
#[cfg(all(feature = "unleash", feature = "redis"))]
pub use unleash::RedisBackup;
#[cfg(feature = "unleash")]
pub use unleash::{Backup, BackupError, FileBackup, PostgresBackup, UnleashOptions};
