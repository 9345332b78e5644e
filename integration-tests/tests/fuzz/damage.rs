//! What is wrong with a table, by kind. `make fuzz-rules` reads the kinds.

use std::fmt;

use cutover::migration::is_retryable;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A row or a value that was acknowledged is missing.
    Lost,
    /// A side holds something else than what was acknowledged.
    Wrong,
    /// A side holds what an earlier write left.
    Stale,
    /// A row exists that should not.
    Orphan,
    /// A write was refused that should have passed, or passed although it should have been refused.
    Refused,
    /// A problem was not found before `expand`, or one was found that does not exist.
    Misjudged,
    /// The schema is not what it should be.
    Schema,
    /// The migration or a statement does not come to an end.
    Stuck,
    /// The test itself failed.
    Harness,
}

#[derive(Debug, Clone)]
pub(crate) struct Damage {
    pub(crate) kind: Kind,
    text: String,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Wrong => "wrong",
            Self::Stale => "stale",
            Self::Orphan => "orphan",
            Self::Refused => "refused",
            Self::Misjudged => "misjudged",
            Self::Schema => "schema",
            Self::Stuck => "stuck",
            Self::Harness => "harness",
        }
    }

    pub(crate) fn of(self, text: impl Into<String>) -> Damage {
        Damage { kind: self, text: text.into() }
    }

    /// What a failed write says about the library: only an answer of the server, and not that of a time limit, is a refusal.
    pub(crate) fn of_failed_write(error: &(dyn std::error::Error + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(one) = next {
            match one.downcast_ref::<sqlx::Error>() {
                Some(sqlx::Error::PoolTimedOut) => return Self::Stuck,
                Some(sqlx::Error::Database(error)) => {
                    let is_limit = matches!(error.code().as_deref(), Some("57014" | "55P03"));
                    return if is_limit { Self::Stuck } else { Self::Refused };
                }
                _ => next = one.source(),
            }
        }
        match error.downcast_ref::<cutover::migration::Error>() {
            Some(error) if !is_retryable(error) => Self::Refused,
            _ => Self::Harness,
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.name(), self.text)
    }
}

impl std::error::Error for Damage {}

impl From<Box<dyn std::error::Error + Send + Sync>> for Damage {
    fn from(error: Box<dyn std::error::Error + Send + Sync>) -> Self {
        match error.downcast::<Self>() {
            Ok(damage) => *damage,
            Err(error) => Kind::Harness.of(error.to_string()),
        }
    }
}

/// The SQLSTATE of an error of the server.
pub(crate) fn code_of(error: &(dyn std::error::Error + 'static)) -> String {
    let mut next = Some(error);
    while let Some(one) = next {
        if let Some(sqlx::Error::Database(error)) = one.downcast_ref::<sqlx::Error>() {
            return error.code().unwrap_or_default().into_owned();
        }
        next = one.source();
    }
    String::new()
}

/// Whether the server has ended the session. Then the transaction is rolled back: an answer to a commit is on its way before.
pub(crate) fn is_cut(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(one) = next {
        if let Some(sqlx::Error::Io(_)) = one.downcast_ref::<sqlx::Error>() {
            return true;
        }
        next = one.source();
    }
    code_of(error) == "57P01"
}
