use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use sqlx::error::DatabaseError;

use crate::ledger::sql_state;

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
    /// The two sides gave a new row different keys, so it can't be found on both. The transaction can't be
    /// committed any more. The implementation has to insert the key that it is given.
    #[error("the two sides gave a new row different keys: insert the key that is given, and return it")]
    KeysDiffer,
    /// A write over the sides failed or was dropped in the middle, and the transaction was to be committed all the
    /// same. It was rolled back: one side may have been written and the other one not. Begin it again.
    #[error("a write of this transaction did not come to its end, so it was rolled back: begin it again")]
    Unfinished,
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
            || self.sql_state().is_some_and(|state| is_passing(&state))
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
    pub(crate) fn or_refusal(self) -> Self {
        match self.sql_state().as_deref() {
            Some("ZC001") => Error::EpochClosed,
            Some("ZC002") => Error::EpochUnknown,
            _ => self,
        }
    }
}

/// A serialization failure or a deadlock: it concerns the transaction, not what it does.
fn is_passing(sql_state: &str) -> bool {
    matches!(sql_state, "40001" | "40P01")
}

/// Whether the same operation can succeed when it is begun again, as [`Error::is_retryable`], for a repository's own
/// error type: its sources are looked through for what the driver or this library said.
pub fn is_retryable(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|error| {
        if let Some(error) = error.downcast_ref::<Error>() {
            return error.is_retryable();
        }
        if let Some(error) = error.downcast_ref::<sqlx::Error>() {
            return sql_state(error).is_some_and(|state| is_passing(&state));
        }
        // What is left of a driver's error where an outer one is transparent.
        if let Some(error) = error.downcast_ref::<Box<dyn DatabaseError>>() {
            return error.code().is_some_and(|state| is_passing(&state));
        }
        #[cfg(feature = "deadpool")]
        if let Some(error) = error.downcast_ref::<tokio_postgres::Error>() {
            return error.code().is_some_and(|state| is_passing(state.code()));
        }
        #[cfg(feature = "deadpool")]
        if let Some(error) = error.downcast_ref::<tokio_postgres::error::DbError>() {
            return is_passing(error.code().code());
        }
        false
    })
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
