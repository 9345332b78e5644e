//! How errors of the database driver are shown.

use std::error::Error;

use sqlx::postgres::PgDatabaseError;

use super::redact;

/// The error for people: message, SQLSTATE, detail and hint. The driver's own text ends in a line number of the server's
/// source code instead.
pub(crate) fn describe_error(error: &sqlx::Error) -> String {
    let refusal = error.as_database_error();
    let Some(refusal) = refusal.and_then(|refusal| refusal.try_downcast_ref::<PgDatabaseError>()) else {
        let text = error.to_string();
        return match tls_advice(&text) {
            Some(advice) => redact(&format!("{advice} ({text})")),
            None => redact(&text),
        };
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

/// What a person can do about a certificate that was not accepted. The texts are those of OpenSSL and of rustls.
fn tls_advice(text: &str) -> Option<&'static str> {
    let has = |reasons: &[&str]| reasons.iter().any(|reason| text.contains(reason));
    if !has(&["certificate verify failed", "invalid peer certificate"]) {
        return None;
    }
    if has(&["has expired", "Expired"]) {
        return Some("the server's certificate has expired; give the server a new one and reload it");
    }
    if has(&["not yet valid", "NotValidYet"]) {
        return Some("the server's certificate is not valid yet; compare the clocks of both machines");
    }
    if has(&["mismatch", "NotValidForName", "not valid for name"]) {
        return Some(
            "the server's certificate is for another name; use the name in the certificate as the host of the address, \
             or sslmode=verify-ca",
        );
    }
    Some(
        "the authority that signed the server's certificate is not trusted; set sslrootcert to the file of the authority's \
         certificate",
    )
}

/// The same for an error of any kind.
pub(crate) fn describe_source(error: &(dyn Error + 'static)) -> String {
    error.downcast_ref().map_or_else(|| redact(&error.to_string()), describe_error)
}
