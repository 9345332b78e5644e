//! What the server's errors mean, and how they are shown.

use std::fmt::Write;

use sqlx::postgres::PgDatabaseError;

/// The SQLSTATE of an error that the server sent.
pub(crate) fn sql_state(error: &sqlx::Error) -> Option<String> {
    error.as_database_error().and_then(|refusal| refusal.code()).map(|code| code.into_owned())
}

/// Whether a statement gave up waiting for a lock.
pub(crate) fn is_lock_timeout(error: &sqlx::Error) -> bool {
    sql_state(error).as_deref() == Some("55P03")
}

/// The error as text: the server's message, SQLSTATE, detail and hint. The driver's own text leaves the last three out, and
/// ends with a line number of the server's source code.
pub(crate) fn describe(error: &sqlx::Error) -> String {
    let Some(refusal) = error.as_database_error().and_then(|error| error.try_downcast_ref::<PgDatabaseError>())
    else {
        return error.to_string();
    };
    let mut text = format!("{} (SQLSTATE {})", refusal.message(), refusal.code());
    for (name, part) in [("detail", refusal.detail()), ("hint", refusal.hint())] {
        if let Some(part) = part {
            // Writing to a `String` does not fail.
            let _ = write!(text, "; {name}: {part}");
        }
    }
    text
}
