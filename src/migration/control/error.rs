use crate::fleet::sql_state;

/// Why an operation could not run, or its result can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// This instance isn't part of the fleet at the moment: its lease ran out, it has not been admitted, or it
    /// was paused in the middle of a read. Nothing was written. Answer 503; another instance can serve it.
    #[error("this instance is not in the fleet at the moment; try another one")]
    NotInFleet,
    /// The database refused the epoch because the migration has moved on. Nothing was written. Try again.
    #[error("the migration moved on: try again at the current epoch")]
    EpochClosed,
    /// The database doesn't know the epoch: it was restored, or failed over to a standby that lagged. Nothing
    /// was written. Try again; the instance goes back to what the ledger says.
    #[error("the ledger is behind this instance: try again")]
    EpochUnknown,
    /// The database's own error.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

impl Error {
    /// Whether the same operation can succeed when it is begun again: a moved epoch, a serialization failure
    /// or a deadlock.
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::EpochClosed | Error::EpochUnknown => true,
            Error::NotInFleet => false,
            Error::Database(error) => matches!(sql_state(error).as_deref(), Some("40001" | "40P01")),
        }
    }

    /// Tells the fence's refusals from other errors.
    pub(super) fn from_fence(error: sqlx::Error) -> Self {
        match sql_state(&error).as_deref() {
            Some("ZC001") => Error::EpochClosed,
            Some("ZC002") => Error::EpochUnknown,
            _ => Error::Database(error),
        }
    }
}
