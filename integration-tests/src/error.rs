//! What can go wrong with a throwaway server, and what to do about it.

use std::{
    io::{self, Write as _},
    path::Path,
    process::ExitStatus,
    time::Duration,
};

/// Why a server could not be had, or did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KitError {
    /// The program is neither on this machine nor in the repository's `.cache`.
    #[error("{program} was not found on this machine or in {cache}; `scripts/servers {server}` gets it")]
    Missing {
        /// The program that was looked for.
        program: &'static str,
        /// What `scripts/servers` calls it.
        server: &'static str,
        /// The folder that was looked into after the usual places.
        cache: String,
    },
    /// The operating system refused something.
    #[error("could not {doing}: {source}")]
    Io {
        /// What was tried.
        doing: String,
        /// What the system answered.
        source: io::Error,
    },
    /// A program ended although it was still needed.
    #[error("{name} ended ({status}); the end of its log:\n{log}")]
    Exited {
        /// The process's name within the kit.
        name: String,
        /// How it ended.
        status: ExitStatus,
        /// The last lines it wrote.
        log: String,
    },
    /// Something did not come true in time.
    #[error("{what}: not within {limit:?}; last answer: {last}")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
        /// What the last question was answered with.
        last: String,
    },
    /// Postgres refused a statement.
    #[error("could not {doing}: {source}")]
    Sql {
        /// What was tried.
        doing: String,
        /// What Postgres answered.
        source: sqlx::Error,
    },
    /// A request got no answer.
    #[error("could not {doing}: {source}")]
    Http {
        /// What was tried.
        doing: String,
        /// What the client says.
        source: reqwest::Error,
    },
    /// A request got an answer that is not the one that was needed.
    #[error("could not {doing}: the answer was {status}: {body}")]
    Refused {
        /// What was tried.
        doing: String,
        /// HTTP status.
        status: u16,
        /// Body of the answer.
        body: String,
    },
    /// A name or a number that the kit can't work with.
    #[error("{0}")]
    Misuse(String),
}

impl KitError {
    /// For `map_err`: an I/O error together with what was tried.
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    /// For `map_err`: a database error together with what was tried.
    pub(crate) fn sql(doing: impl Into<String>) -> impl FnOnce(sqlx::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Sql { doing, source }
    }

    /// For `map_err`: a failed request together with what was tried.
    pub(crate) fn http(doing: impl Into<String>) -> impl FnOnce(reqwest::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Http { doing, source }
    }

    /// True when a server ended because somebody else was quicker to take its port.
    pub(crate) fn is_port_taken(&self) -> bool {
        match self {
            Self::Exited { log, .. } => log.to_lowercase().contains("in use"),
            _ => false,
        }
    }
}

/// For a test of a server that not everybody can install: `None`, and a word on the terminal, when
/// it is not there, so that the test can end. With `TESTKIT_REQUIRE_SERVERS` set that is an error.
///
/// # Errors
///
/// Whatever `started` failed with, other than [`KitError::Missing`].
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

/// Past the test harness, which shows a passing test's output to nobody.
fn skipped(why: &KitError) {
    let _ = writeln!(io::stderr(), "SKIPPED: {why}");
}

/// Writes a file, naming it when that fails.
pub(crate) fn write(path: &Path, text: impl AsRef<[u8]>) -> Result<(), KitError> {
    std::fs::write(path, text).map_err(KitError::io(format!("write {}", path.display())))
}
