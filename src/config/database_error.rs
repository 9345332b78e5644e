//! How errors of the database driver are shown.

use std::error::Error;

use sqlx::postgres::PgDatabaseError;

use super::redact;
use super::tls_error::{POSTGRES, with_tls_advice};

/// The error for people: message, SQLSTATE, detail and hint. The driver's own text ends in a line number of the server's
/// source code instead.
pub(crate) fn describe_error(error: &sqlx::Error) -> String {
    let refusal = error.as_database_error();
    let Some(refusal) = refusal.and_then(|refusal| refusal.try_downcast_ref::<PgDatabaseError>()) else {
        return redact(&with_tls_advice(error.to_string(), &POSTGRES));
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

/// The same without the server's detail, which may hold the values of a row.
pub(crate) fn describe_without_values(error: &sqlx::Error) -> String {
    let refusal = error.as_database_error();
    match refusal.and_then(|refusal| refusal.try_downcast_ref::<PgDatabaseError>()) {
        Some(refusal) => redact(&format!("{} (SQLSTATE {})", refusal.message(), refusal.code())),
        None => describe_error(error),
    }
}

/// The same for an error of any kind.
pub(crate) fn describe_source(error: &(dyn Error + 'static)) -> String {
    error.downcast_ref().map_or_else(|| redact(&error.to_string()), describe_error)
}
