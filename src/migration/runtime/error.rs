use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use sqlx::error::DatabaseError;
use sqlx::postgres::PgDatabaseError;

use crate::ledger::{describe_error, sql_state};

/// Why an operation could not run, or why its result cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// This instance is not in the fleet: its lease expired, it has not been admitted, or it was paused in the middle of a
    /// read. Nothing was written. Answer 503; another instance can serve the request.
    #[error("this instance is not in the fleet at the moment; retry on another instance")]
    NotInFleet,
    /// The database refused the epoch because the migration has moved on. Nothing was written. Retry.
    #[error("the epoch is closed because the migration has moved on; retry at the current epoch")]
    EpochClosed,
    /// The database does not know the epoch: it was restored, or failed over to a lagging standby. Nothing was written.
    /// Retry; the instance rejoins the fleet meanwhile.
    #[error("the epoch is not in the ledger, which was restored or failed over to an older state; retry")]
    EpochUnknown,
    /// The transaction was not begun with the migration that the data belongs to, so it has no phase for it. Nothing was
    /// written.
    #[error(
        "the data belongs to migration `{migration}`, but the transaction was begun with {begun_with}; \
         begin it with all migrations that it writes under: `first.and(&second).begin(&pool)`"
    )]
    OtherMigration {
        /// The migration that the data belongs to.
        migration: String,
        /// The migrations that the transaction was begun with, as text.
        begun_with: String,
    },
    /// The plan of this build does not let the guard trigger mirror writes, so a statement that names the columns of one
    /// side would leave the other side behind. Nothing was written.
    #[error(
        "the plan of migration `{migration}` does not mirror writes: use `.mirror_writes()` in a ColumnMigration, or \
         write both sides with a DualWrite"
    )]
    NotMirrored {
        /// The migration.
        migration: String,
    },
    /// The two sides gave a new row different keys, so it cannot be found on both. The transaction can no longer be
    /// committed.
    #[error(
        "the two sides gave a new row different keys; insert the key that the implementation receives, and return it"
    )]
    KeysDiffer,
    /// The second side of an insert inserted the row that the first side had just inserted. Nothing was written.
    #[error(
        "the second side of an insert inserted key ({key}) again (constraint {constraint}): in a migration of a column, both \
         sides are one row; insert with `on conflict (…) do update set …` on the new side, or write both columns in one \
         statement (`DualWrite::at_once`); in a migration of a table, the new table already has a row with this key: let \
         both tables use one sequence, and insert with `on conflict (…) do update set …`"
    )]
    InsertedTwice {
        /// The key, as Postgres prints it.
        key: String,
        /// The constraint that the second insert violated.
        constraint: String,
    },
    /// A write to both sides failed or was dropped before its end, and the transaction was then to be committed. It was
    /// rolled back, because one side may have been written and the other not.
    #[error("a write of this transaction did not succeed, so the transaction was rolled back; run it again")]
    Unfinished,
    /// The database's error.
    #[error("{}", describe_error(.0))]
    Database(#[from] sqlx::Error),
    /// The database's error, on a connection of a `deadpool_postgres::Pool`.
    #[cfg(feature = "deadpool")]
    #[error(transparent)]
    Deadpool(#[from] deadpool_postgres::PoolError),
}

impl Error {
    /// Whether the same operation can succeed on a retry: the epoch has moved, or the database reported a serialization
    /// failure or a deadlock.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Error::EpochClosed | Error::EpochUnknown)
            || self.sql_state().is_some_and(|state| is_transient(&state))
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

    /// Turns a refusal of the fence into the variant for it.
    pub(crate) fn or_refusal(self) -> Self {
        match self.sql_state().as_deref() {
            Some("ZC001") => Error::EpochClosed,
            Some("ZC002") => Error::EpochUnknown,
            _ => self,
        }
    }
}

/// A violation of a unique constraint, as the server reports it.
pub(crate) struct Duplicate {
    pub(crate) constraint: String,
    /// The values of the constraint's columns, as the server prints them.
    pub(crate) values: String,
}

/// The violation of a unique constraint among the sources of an error.
pub(crate) fn duplicate_key(error: &(dyn std::error::Error + 'static)) -> Option<Duplicate> {
    // The detail is `Key (id)=(7) already exists.`, in the server's language.
    let duplicate = |state: &str, constraint: Option<&str>, detail: Option<&str>| {
        let (_, values) = detail?.split_once(")=(")?;
        let (values, _) = values.rsplit_once(')')?;
        let constraint = constraint.unwrap_or_default().to_owned();
        (state == "23505").then(|| Duplicate { constraint, values: values.to_owned() })
    };
    let of_sqlx = |error: &dyn DatabaseError| {
        let error = error.try_downcast_ref::<PgDatabaseError>()?;
        duplicate(error.code(), error.constraint(), error.detail())
    };
    sources(error).find_map(|error| {
        if let Some(sqlx::Error::Database(error)) = error.downcast_ref::<sqlx::Error>() {
            return of_sqlx(&**error);
        }
        if let Some(Error::Database(sqlx::Error::Database(error))) = error.downcast_ref::<Error>() {
            return of_sqlx(&**error);
        }
        if let Some(error) = error.downcast_ref::<Box<dyn DatabaseError>>() {
            return of_sqlx(&**error);
        }
        #[cfg(feature = "deadpool")]
        if let Some(error) = error.downcast_ref::<tokio_postgres::error::DbError>() {
            return duplicate(error.code().code(), error.constraint(), error.detail());
        }
        None
    })
}

/// An error and its sources.
fn sources<'e>(
    error: &'e (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'e (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// A serialization failure or a deadlock. A retry can succeed.
fn is_transient(sql_state: &str) -> bool {
    matches!(sql_state, "40001" | "40P01")
}

/// Like [`Error::is_retryable`], for a repository's own error type: looks for an error of the database driver or of this
/// library among its sources.
pub fn is_retryable(error: &(dyn std::error::Error + 'static)) -> bool {
    sources(error).any(|error| {
        if let Some(error) = error.downcast_ref::<Error>() {
            return error.is_retryable();
        }
        if let Some(error) = error.downcast_ref::<sqlx::Error>() {
            return sql_state(error).is_some_and(|state| is_transient(&state));
        }
        // What is left of the driver's error if an outer one is transparent.
        if let Some(error) = error.downcast_ref::<Box<dyn DatabaseError>>() {
            return error.code().is_some_and(|state| is_transient(&state));
        }
        #[cfg(feature = "deadpool")]
        if let Some(error) = error.downcast_ref::<tokio_postgres::Error>() {
            return error.code().is_some_and(|state| is_transient(state.code()));
        }
        #[cfg(feature = "deadpool")]
        if let Some(error) = error.downcast_ref::<tokio_postgres::error::DbError>() {
            return is_transient(error.code().code());
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

/// 503 with `Retry-After` if a retry or another instance can succeed, otherwise 500. Details go to the log only.
impl IntoResponse for Error {
    fn into_response(self) -> Response {
        if self.is_retryable() || matches!(self, Error::NotInFleet) {
            let again = [(header::RETRY_AFTER, "1")];
            (StatusCode::SERVICE_UNAVAILABLE, again, "try again\n").into_response()
        } else {
            tracing::error!(error = %self, "operation failed");
            (StatusCode::INTERNAL_SERVER_ERROR, "internal error\n").into_response()
        }
    }
}
