//! What the server's errors mean, and how they are shown.

pub(crate) use crate::config::describe_error;

/// The SQLSTATE of an error that the server sent.
pub(crate) fn sql_state(error: &sqlx::Error) -> Option<String> {
    error.as_database_error().and_then(|refusal| refusal.code()).map(|code| code.into_owned())
}

/// Whether a statement gave up waiting for a lock.
pub(crate) fn is_lock_timeout(error: &sqlx::Error) -> bool {
    sql_state(error).as_deref() == Some("55P03")
}
