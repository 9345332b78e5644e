//! What the server's errors mean, and how they are shown.

use crate::config::redact;
use sqlx::postgres::PgDatabaseError;

/// The SQLSTATE of an error that the server sent.
pub(crate) fn sql_state(error: &sqlx::Error) -> Option<String> {
    error.as_database_error().and_then(|refusal| refusal.code()).map(|code| code.into_owned())
}

/// Whether a statement gave up waiting for a lock.
pub(crate) fn is_lock_timeout(error: &sqlx::Error) -> bool {
    sql_state(error).as_deref() == Some("55P03")
}

/// The error for people: message, SQLSTATE, detail and hint. The driver's own text ends in a line number of the server's
/// source code instead.
pub(crate) fn describe_error(error: &sqlx::Error) -> String {
    let refusal = error.as_database_error();
    let Some(refusal) = refusal.and_then(|refusal| refusal.try_downcast_ref::<PgDatabaseError>()) else {
        return redact(&error.to_string());
    };
    let mut text = format!("{} (SQLSTATE {}", refusal.message(), refusal.code());
    for (name, value) in [("detail", refusal.detail()), ("hint", refusal.hint())] {
        if let Some(value) = value {
            text.push_str(&format!("; {name}: {value}"));
        }
    }
    text.push(')');
    redact(&text)
}
