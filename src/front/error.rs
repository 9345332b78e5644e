use std::io;
use std::net::SocketAddr;

use super::environment::Output;
use crate::ConfigError;
use crate::preflight::PreflightReport;

/// Why an instance was not started.
///
/// A database that is unavailable is not among the reasons: the start waits for it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Settings that can't be used: all of them, of all parts.
    #[error("the configuration can't be used:{}", list(.0))]
    Config(#[from] ConfigError),
    /// The admin listener can't be opened.
    #[error("{variable}: could not listen on {address}: {error}; use an address that is free")]
    Listen {
        /// The variable that sets the address.
        variable: &'static str,
        /// The address.
        address: SocketAddr,
        /// The system's error.
        #[source]
        error: io::Error,
    },
    /// SIGTERM, SIGINT or `/drain` came before the start was complete. The instance has left the fleet again.
    #[error("interrupted before the start was complete")]
    Interrupted,
    /// A preflight was requested instead of a start. It may have passed.
    #[error("{0}")]
    Preflight(Box<PreflightReport>, Output),
}

fn list(error: &ConfigError) -> String {
    error.problems.iter().map(|problem| format!("\n- {problem}")).collect()
}

/// Any error of a service, such as the one that prevents it from making its router.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A part that the instance was started without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the service was started without {part}; call `{method}` on `Cutover`")]
pub struct NotConfigured {
    pub(super) part: &'static str,
    pub(super) method: &'static str,
}
