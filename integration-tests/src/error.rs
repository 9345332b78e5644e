//! Errors of the test kit.

use std::{
    io::{self, Write as _},
    path::Path,
    process::ExitStatus,
    time::Duration,
};

/// Why a server could not be started, or an operation on it failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KitError {
    /// The program is neither on this machine nor in the repository's `.cache`.
    #[error("{program} is neither on this machine nor in {cache}; `scripts/servers {server}` installs it")]
    Missing {
        /// The program that was looked for.
        program: &'static str,
        /// What `scripts/servers` calls it.
        server: &'static str,
        /// The folder that was searched last.
        cache: String,
    },
    /// The operating system refused something.
    #[error("could not {doing}: {source}")]
    Io {
        /// The operation.
        doing: String,
        /// The system's error.
        source: io::Error,
    },
    /// A program ended early.
    #[error("{name} ended ({status}); its last log lines:\n{log}")]
    Exited {
        /// The process's name within the kit.
        name: String,
        /// How it ended.
        status: ExitStatus,
        /// Its last lines of output.
        log: String,
    },
    /// A condition was not met in time.
    #[error("waited {limit:?} for: {what}; last answer: {last}")]
    TimedOut {
        /// The condition.
        what: String,
        /// The time limit.
        limit: Duration,
        /// The last answer or error.
        last: String,
    },
    /// Postgres refused a statement.
    #[error("could not {doing}: {source}")]
    Sql {
        /// What was tried.
        doing: String,
        /// Postgres's error.
        source: sqlx::Error,
    },
    /// A request got no response.
    #[error("could not {doing}: {source}")]
    Http {
        /// What was tried.
        doing: String,
        /// The client's error.
        source: reqwest::Error,
    },
    /// A request got another status than expected.
    #[error("could not {doing}: status {status}: {body}")]
    Refused {
        /// What was tried.
        doing: String,
        /// HTTP status.
        status: u16,
        /// Body of the response.
        body: String,
    },
    /// An argument that the kit cannot use.
    #[error("{0}")]
    Misuse(String),
}

impl KitError {
    /// For `map_err`: adds the operation to an I/O error.
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    /// For `map_err`: adds the operation to a database error.
    pub(crate) fn sql(doing: impl Into<String>) -> impl FnOnce(sqlx::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Sql { doing, source }
    }

    /// For `map_err`: adds the operation to a failed request.
    pub(crate) fn http(doing: impl Into<String>) -> impl FnOnce(reqwest::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Http { doing, source }
    }

    /// True if a server ended because another process took its port first.
    pub(crate) fn is_port_taken(&self) -> bool {
        match self {
            Self::Exited { log, .. } => log.to_lowercase().contains("in use"),
            _ => false,
        }
    }
}

/// For tests of optional servers. If the server is not installed, prints a message and returns `None`, so that the
/// test can end. With `TESTKIT_REQUIRE_SERVERS` set, returns the error.
///
/// # Errors
///
/// The error of `started`, except [`KitError::Missing`].
pub fn if_installed<T>(started: Result<T, KitError>) -> Result<Option<T>, KitError> {
    let required = std::env::var_os("TESTKIT_REQUIRE_SERVERS").is_some();
    match started {
        Err(error @ KitError::Missing { .. }) if !required => {
            skipped(&error);
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// Bypasses the test harness, which hides the output of a test that passes.
fn skipped(why: &KitError) {
    let _ = writeln!(io::stderr(), "SKIPPED: {why}");
}

/// Writes a file. An error names it.
pub(crate) fn write(path: &Path, text: impl AsRef<[u8]>) -> Result<(), KitError> {
    std::fs::write(path, text).map_err(KitError::io(format!("write {}", path.display())))
}
