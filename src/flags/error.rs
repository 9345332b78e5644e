//! Errors of setting flags up and of asking the flag server. A decision never fails.

use crate::config::ConfigError;

/// Why [`Flags`](super::Flags) could not be set up or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FlagsError {
    /// The options cannot be used.
    #[error("flag options: {0}")]
    Config(#[from] ConfigError),
    /// There is no Tokio runtime on this thread. The flag server is polled in the background.
    #[error("no Tokio runtime on this thread; create `Flags` inside one, because it polls the flag server")]
    NoRuntime,
    /// [`Flags::set`](super::Flags::set) was called on flags that a server owns.
    #[error("a flag server owns these flags; change the flag there, or use `Flags::fixed`")]
    NotFixed,
    /// The metrics could not be registered.
    #[error("could not register the metrics of the flags: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// Why the last request to the flag server failed, from [`Flags::last_fetch_error`](super::Flags::last_fetch_error).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
#[non_exhaustive]
pub struct FetchError {
    /// What kind of failure it is.
    pub kind: FetchErrorKind,
    /// What failed, with the server's answer. Contains no token.
    pub message: String,
}

#[cfg(feature = "unleash")]
pub(in crate::flags) fn unavailable(message: impl Into<String>) -> FetchError {
    FetchError { kind: FetchErrorKind::Unavailable, message: message.into() }
}

#[cfg(feature = "unleash")]
pub(in crate::flags) fn wrong_url(message: impl Into<String>) -> FetchError {
    FetchError { kind: FetchErrorKind::WrongUrl, message: message.into() }
}

/// What kind of failure a [`FetchError`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FetchErrorKind {
    /// The server refused the token (401 or 403). Waiting does not help.
    TokenRefused,
    /// The answer is not that of an Unleash API: the URL is wrong. Waiting does not help.
    WrongUrl,
    /// The certificate of the server, or that of this client, was not accepted. Waiting does not help, as a rule.
    NotTrusted,
    /// The server is unreachable, overloaded or failing.
    Unavailable,
}
