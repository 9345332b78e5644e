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

/// Classes of SQLSTATE of statements that may succeed when they are repeated: connection, conflict with another transaction,
/// resources, cancellation and shutdown.
const TRANSIENT: [&str; 4] = ["08", "40", "53", "57"];

/// Whether the server refuses the statement, and would refuse it again. So it tells something about the statement.
pub(crate) fn is_refusal(error: &sqlx::Error) -> bool {
    let is_final = |state: &str| !TRANSIENT.iter().any(|class| state.starts_with(class));
    sql_state(error).is_some_and(|state| is_final(&state)) && !is_lock_timeout(error)
}
