//! Checks, before a build takes requests or connections, that it can run in this environment.
//!
//! **Hazard.** A build that lacks a variable, needs a flag that was never created, or cannot run the current phase of a
//! migration fails during its rollout, and shows one problem per attempt. A separate check script for CI checks other
//! things than the instance does, and the two drift apart. A preflight runs the checks of readiness once, changes
//! nothing, and reports everything together.
//!
//! | area | problem | warning |
//! |---|---|---|
//! | configuration | an unusable value, an unknown name | |
//! | dependencies | unreachable within the time limit of the check | reachable, but impaired |
//! | ledger | not installed and not installable, too new, missing rights, a standby | the first start will install it |
//! | migrations | in a phase that this build cannot run, or one that this build does not know | |
//! | connections | fewer than one per instance | fewer than the limits of all pools |
//! | flags | declared but missing or archived; the server refuses the token; the URL is wrong; no server is configured | stale; the server is unreachable |
//!
//! An unreachable flag server is a warning, because an instance starts without it. A missing flag is a problem although
//! its default would apply, because a person who tries to change it on the server will not find it.
//!
//! **Deployment caveat.** A preflight describes the state at one moment. The same rules apply at the start and afterwards: an
//! instance is not admitted if its build does not support the phase that the migration is in then.
//!
//! [`Preflight`] can be used alone. [`Cutover`](crate::Cutover) fills it in and runs it if `CUTOVER_PREFLIGHT=1`; see
//! [`Cutover::run`](crate::Cutover::run).

mod flags;
mod ledger;
mod report;
mod run;

pub use report::{Finding, PreflightReport, Severity};
pub use run::Preflight;
