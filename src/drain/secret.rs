use std::fmt;

use sha2::{Digest, Sha256};

use crate::config::remember;
use crate::{ConfigError, Problem};

/// The shortest accepted secret, in bytes. The endpoint does not limit the rate of guesses.
const MIN_LEN: usize = 16;

/// A secret that allows a caller to drain this process. It is never printed.
#[derive(Clone)]
pub struct DrainSecret(Box<str>);

impl DrainSecret {
    /// A secret of at least 16 visible ASCII characters, so that a header can carry it.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if the text is shorter or holds other characters. The error does not contain the text.
    pub fn new(text: &str) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        if text.len() < MIN_LEN {
            let problem = format!("has {} bytes; use at least {MIN_LEN}", text.len());
            problems.push(Problem::new("drain.secret", problem));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            let problem = "holds a character that is not visible ASCII, which a header can't carry";
            problems.push(Problem::new("drain.secret", problem));
        }
        ConfigError::check(problems)?;
        remember(text);
        Ok(Self(text.into()))
    }

    /// Compares in a time that depends on neither the secret nor how much of it is right.
    pub(super) fn matches(&self, other: &[u8]) -> bool {
        let (own, other) = (Sha256::digest(self.0.as_bytes()), Sha256::digest(other));
        own.iter().zip(&other).fold(0, |difference, (own, other)| difference | (own ^ other)) == 0
    }
}

impl PartialEq for DrainSecret {
    fn eq(&self, other: &Self) -> bool {
        self.matches(other.0.as_bytes())
    }
}

impl Eq for DrainSecret {}

impl fmt::Debug for DrainSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DrainSecret(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_text_matches_and_nothing_prints_it() {
        let secret = DrainSecret::new("correct-horse-battery").unwrap();
        assert!(secret.matches(b"correct-horse-battery"));
        for other in ["", "correct-horse-batter", "correct-horse-battery!", "Correct-horse-battery"] {
            assert!(!secret.matches(other.as_bytes()), "{other}");
        }
        assert!(!format!("{secret:?}").contains("horse"));
        for bad in ["short", "has a blank in it, which no", "ümlaut-ümlaut-ümlaut"] {
            let error = DrainSecret::new(bad).unwrap_err().to_string();
            assert!(error.starts_with("drain.secret: ") && !error.contains(bad), "{error}");
        }
    }
}
