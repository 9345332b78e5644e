use crate::fleet::LedgerError;

/// Why an instance could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration is wrong: every problem found, each naming its field or variable.
    #[error("the configuration is wrong:\n- {}", .0.join("\n- "))]
    Configuration(Vec<String>),
    /// The ledger can't be used.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}
