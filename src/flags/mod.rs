//! Feature flags: typed, decided once per request, and with the last known state from the first request on.
//!
//! **Hazards** that this module removes:
//!
//! - A request asks for a flag twice and gets two answers, because the flag changed in between. [`FlagsLayer`] pins
//!   decisions to the request: the first answer applies until the request ends.
//! - A new instance answers "off" to everything until it reaches the flag server, although the code declares otherwise,
//!   or although the rest of the fleet has been "on" for weeks. Here the last known state applies if one is stored
//!   ([`UnleashOptions::backup`]: file, Postgres, Redis), otherwise the default of the [`Flag`]. Await [`Flags::ready`]
//!   with a time limit before serving.
//! - The flag server is unreachable, hangs, or answers with an error page. The last known state stays in use,
//!   [`Flags::is_fresh`] shows it, and a [`Switch`] that steers a whole fleet is [`Switch::Unknown`] instead of off.
//! - Every pod polls, so requests to the flag server grow with the fleet. With [`FleetPolling`], one elected instance polls
//!   often and the others receive the state through the ledger.
//! - A flag that steers a fleet has a gradual rollout or several variants, so that two instances can get two answers.
//!   Its [`Switch`] is unknown, with the reason.
//! - A flag is renamed, archived or marked as stale while code still asks for it. [`Flags::coverage`] finds it, and
//!   `cutover_flag_defaults_total` counts it.
//!
//! [`Flags`] is the handle. Code declares a [`Flag`], decides about a [`Subject`], pins [`Decisions`] to a request, and
//! sends requests to one of two services with a [`FlagRouterLayer`]. Flags come from an Unleash server (cargo feature
//! `unleash`), from an OpenFeature provider (`openfeature`), or from code ([`Flags::fixed`]).
//!
//! # Deployment caveat
//!
//! While two builds run, both decide. A rollout that is sticky by user gives a user the same answer in both; one without
//! a user or session is random for every request. Instances do not learn of a change at the same moment: for a second or
//! two, some have it and some do not. So a flag can choose between two ways to *do* something, but not between two
//! places where data lives; for that, use a [`migration`](crate::migration).
//!
//! # Defaults and reasons
//!
//! | option | default | reason |
//! |---|---|---|
//! | [`interval`](UnleashOptions::interval) | 1 s | the server itself looks once a second, so a change is everywhere within 2.1 s; an unchanged state is an answer without a body |
//! | [`direct_interval`](UnleashOptions::direct_interval) | 15 s | as in Unleash's own clients; for an instance whose fleet has another one that polls at `interval` ([`FleetPolling`]) |
//! | [`time_limit`](UnleashOptions::time_limit) | 3 s | a server that hangs must not block the poller, and the answer of a slow one should still be used |
//! | [`stale_after`](UnleashOptions::stale_after) | 30 s | covers several attempts; a person who moves a migration by a flag sees within this time that the flag has no effect |
//! | [`metrics_interval`](UnleashOptions::metrics_interval) | 60 s | as in Unleash's own clients; [`Flags::close`] sends the rest |
//! | [`backup`](UnleashOptions::backup) | none | the application decides where a state may be stored, because strategies may name users |
//!
//! # Differences from Unleash's client
//!
//! `unleash-api-client` carries the protocol: endpoints, headers, registration, the types of reports, custom strategies and
//! the transport trait. The engine is Unleash's own (`unleash-yggdrasil`), and passes the open client specification through
//! this API. The client's polling, counts and decisions are not used. Polling applies the body of an error response, has no
//! time limit, and downloads and compiles an unchanged state each time. A report that fails is lost. A decision takes a
//! lock, and answers `false` before the first fetch whatever the default is. A custom strategy that is not registered
//! shifts the results of the others.
//!
//! # Events
//!
//! A decision about a flag with impression data is an event of [`tracing`] at level INFO with target
//! `cutover::flags::impression` and the fields `flag`, `enabled`, `variant` and `user`. A request announces each flag once.

mod counters;
mod decisions;
mod error;
mod fixed;
mod flag;
mod handle;
mod layer;
mod names;
#[cfg(feature = "openfeature")]
mod openfeature;
#[cfg(all(test, feature = "openfeature"))]
mod openfeature_tests;
mod payload;
mod problem;
mod router;
mod scope;
mod source;
mod spare;
mod subject;
#[cfg(test)]
mod tests;
#[cfg(feature = "unleash")]
mod unleash;

pub use decisions::Decisions;
pub use error::{FetchError, FetchErrorKind, FlagsError};
pub use fixed::FixedFlag;
pub use flag::{Flag, PayloadKind, Switch, Variant};
pub use handle::Flags;
pub use layer::{FlagsFuture, FlagsLayer, FlagsService, MissingDecisions};
pub use payload::{Csv, Json};
pub use problem::{FlagProblem, FlagProblemKind, SwitchProblem};
pub use router::{FlagRouter, FlagRouterFuture, FlagRouterLayer};
pub use subject::Subject;
#[cfg(all(feature = "unleash", feature = "redis"))]
pub use unleash::RedisBackup;
#[cfg(feature = "unleash")]
pub use unleash::{
    Backup, BackupError, CustomStrategy, FileBackup, FleetPolling, PostgresBackup, UnleashOptions,
};
/// The client that carries the protocol, for [`CustomStrategy`] and [`UnleashOptions::transport`].
#[cfg(feature = "unleash")]
pub use unleash_api_client;
