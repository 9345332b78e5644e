use super::environment::Output;
use crate::ledger::LedgerError;
use crate::pool::ShareError;
use crate::preflight::PreflightReport;

/// Why an instance was not started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration is wrong: every problem found, each naming its field or variable.
    #[error("the configuration is wrong:\n- {}", .0.join("\n- "))]
    Configuration(Vec<String>),
    /// The ledger can't be used.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The server has not enough connections for the fleet.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// SIGTERM or SIGINT came before it had started: nothing was begun, or what was ends by itself.
    #[error("told to end before it had started")]
    Interrupted,
    /// A preflight was asked for instead of a start. It may have passed.
    #[error("{0}")]
    Preflight(Box<PreflightReport>, Output),
}

/// Why a service could not make its router.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What an instance was not started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the service was started without {part}: add `{method}`")]
pub struct NotConfigured {
    pub(super) part: &'static str,
    pub(super) method: &'static str,
}
