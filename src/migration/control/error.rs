use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

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
    /// The transaction was begun at another migration, so its phase says nothing about this one. Nothing was
    /// written. Begin it with the migration that the data belongs to.
    #[error("the transaction was begun at another migration: begin it with the one that the data belongs to")]
    OtherMigration,
    /// The database's own error.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    /// The database's own error, on a connection of a `deadpool_postgres::Pool`.
    #[cfg(feature = "deadpool")]
    #[error(transparent)]
    Deadpool(#[from] deadpool_postgres::PoolError),
}

impl Error {
    /// Whether the same operation can succeed when it is begun again: a moved epoch, a serialization failure
    /// or a deadlock.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Error::EpochClosed | Error::EpochUnknown)
            || matches!(self.sql_state().as_deref(), Some("40001" | "40P01"))
    }

    fn sql_state(&self) -> Option<String> {
        match self {
            Error::Database(error) => sql_state(error),
            #[cfg(feature = "deadpool")]
            Error::Deadpool(deadpool_postgres::PoolError::Backend(error)) => {
                error.code().map(|state| state.code().to_owned())
            }
            _ => None,
        }
    }

    /// Tells the fence's refusals from other errors.
    pub(super) fn or_refusal(self) -> Self {
        match self.sql_state().as_deref() {
            Some("ZC001") => Error::EpochClosed,
            Some("ZC002") => Error::EpochUnknown,
            _ => self,
        }
    }
}

#[cfg(feature = "deadpool")]
impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        Error::Deadpool(error.into())
    }
}

/// 503 with `Retry-After` where another attempt or instance can succeed, else 500. Details stay in the log.
impl IntoResponse for Error {
    fn into_response(self) -> Response {
        if self.is_retryable() || matches!(self, Error::NotInFleet) {
            let again = [(header::RETRY_AFTER, "1")];
            (StatusCode::SERVICE_UNAVAILABLE, again, "try again\n").into_response()
        } else {
            tracing::error!(error = %self, "an operation failed");
            (StatusCode::INTERNAL_SERVER_ERROR, "internal error\n").into_response()
        }
    }
}
