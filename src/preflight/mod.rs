//! What would break this build here, all of it at once, before it takes a request or a connection for itself.
//!
//! **Hazard.** A build that lacks a variable, needs a flag that was never made, or can't run the phase that a
//! migration is in, finds out when it is rolled out; and finds one thing per attempt. A check of its own for CI
//! finds something else: it drifts away from what the instance will look at. Here the same checks are asked once
//! that readiness asks for ever, nothing is changed, and everything that is wrong is said together.
//!
//! | looked at | a problem | a warning |
//! |---|---|---|
//! | configuration | a value that can't be used, a name that nobody knows | |
//! | dependencies | not reached within the check's time limit | reached, but not as it should be |
//! | ledger | not installed and not installable, too new, no rights, a standby | the first start will install it |
//! | migrations | in a phase that this build can't run, or not as the schema is; one that it does not know | |
//! | connections | not one for each instance | fewer than the pools may have |
//! | flags | declared but missing at the source or archived there | stale there; the source was not reached |
//!
//! A flag server that is away is a warning, because an instance starts without it, too. A missing flag is a problem,
//! although its default would serve: somebody will turn a switch that is not there.
//!
//! **Deployment caveat.** A preflight is true at its moment. The same rules hold at the start and afterwards: the
//! deploy guard refuses a build whose range lacks the phase then.
//!
//! [`Preflight`] stands alone. The front door fills it in and runs it when `CUTOVER_PREFLIGHT=1`; see
//! [`Cutover::run`](crate::Cutover::run).

mod report;
mod run;

pub use report::{Finding, PreflightReport, Severity};
pub use run::Preflight;
