//! The secrets of this process, to find them in texts whose form says nothing: a server may quote what it was sent.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{PoisonError, RwLock};

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;

/// Shorter ones are not looked for, because they would be found in the middle of ordinary words.
const SHORTEST: usize = 8;
/// More than a process has; those that were replaced most long ago are forgotten.
const MOST: usize = 1024;

static KNOWN: RwLock<Secrets> = RwLock::new(Secrets(VecDeque::new()));

/// In the order in which they were remembered.
struct Secrets(VecDeque<Known>);

struct Known {
    secret: String,
    /// What it looks like in a text, in lower case: as it is, in a URL, and in quotes.
    forms: Vec<String>,
}

/// Removes `secret` from now on from every text that goes through `redact`.
pub fn remember(secret: &str) {
    if !KNOWN.read().unwrap_or_else(PoisonError::into_inner).has(secret) {
        KNOWN.write().unwrap_or_else(PoisonError::into_inner).add(secret);
    }
}

impl Secrets {
    fn has(&self, secret: &str) -> bool {
        self.0.iter().any(|known| known.secret == secret)
    }

    fn add(&mut self, secret: &str) {
        if secret.len() < SHORTEST || self.has(secret) {
            return;
        }
        let quoted = |text: String| text[1..text.len() - 1].to_owned();
        let mut forms = vec![
            secret.to_owned(),
            utf8_percent_encode(secret, NON_ALPHANUMERIC).to_string(),
            quoted(format!("{secret:?}")),
            quoted(serde_json::Value::from(secret).to_string()),
        ];
        forms.iter_mut().for_each(|form| form.make_ascii_lowercase());
        forms.sort();
        forms.dedup();
        if self.0.len() == MOST {
            self.0.pop_front();
        }
        self.0.push_back(Known { secret: secret.to_owned(), forms });
    }

    /// Where a text, which is in lower case, has one of them.
    fn find(&self, text: &str) -> Vec<Range<usize>> {
        let forms = self.0.iter().flat_map(|known| &known.forms);
        forms
            .flat_map(|form| text.match_indices(form.as_str()).map(|(at, form)| at..at + form.len()))
            .collect()
    }
}

/// As [`remember`], for the password in an address, as it is there and decoded.
#[cfg(feature = "redis")]
pub(crate) fn remember_encoded(secret: &str) {
    remember(secret);
    remember(&percent_decode_str(secret).decode_utf8_lossy());
}

/// As [`remember`], for the password of these options. One that is also the name of the user or database is no secret.
pub(crate) fn remember_password(options: &PgConnectOptions) {
    // The driver shows the password only in a URL, and panics if the user or the host cannot be a part of one.
    let url = options.clone().username("user").host("host").to_url_lossy();
    let Some(password) = url.password() else { return };
    let password = percent_decode_str(password).decode_utf8_lossy();
    if password != options.get_username() && Some(&*password) != options.get_database() {
        remember(&password);
    }
}

/// Where a text, which is in lower case, has a secret.
pub(super) fn find(text: &str) -> Vec<Range<usize>> {
    KNOWN.read().unwrap_or_else(PoisonError::into_inner).find(text)
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use super::*;
    use crate::config::redact;

    #[test]
    fn a_known_secret_is_removed_in_each_form() {
        remember("Zebra\"4/ü");
        for text in [
            "login of Zebra\"4/ü failed",
            "zebra%224%2f%C3%BC",
            r#"{"a":"Zebra\"4/ü"}"#,
            r#"Some("Zebra\"4/ü")"#,
        ] {
            let clean = redact(text);
            assert!(clean.contains("***") && !clean.to_lowercase().contains("zebra"), "{clean}");
        }
    }

    #[test]
    fn a_password_that_is_a_name_stays() {
        for url in [
            "postgres://postgres:postgres@a/b",
            "postgres://me:orders_db@a/orders_db",
            "postgres://me:short@a/b",
        ] {
            remember_password(&PgConnectOptions::from_str(url).unwrap());
        }
        let text = "no database orders_db, and no role postgres, in short";
        assert_eq!(redact(text), text);
        remember_password(&PgConnectOptions::from_str("postgres://me:giraffe%2Fneck@a/b").unwrap());
        assert_eq!(redact("it was sent giraffe/neck"), "it was sent ***");
    }

    #[test]
    fn only_so_many_are_kept() {
        let mut secrets = Secrets(VecDeque::new());
        for number in 0..2 * MOST {
            secrets.add(&format!("replaced-{number:04}"));
        }
        assert!(secrets.find("replaced-0000").is_empty());
        assert_eq!(secrets.find("replaced-2047"), vec![0..13]);
    }
}
