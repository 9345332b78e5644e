//! The trait of a place that stores the last known state.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;

/// A place that stores the last known state: [`FileBackup`](super::FileBackup),
/// [`PostgresBackup`](super::PostgresBackup), `RedisBackup`, or your own.
///
/// Use one place per service and environment. Its instances share it, because they all have the same state. A state is
/// loaded once, at the start, and saved after each change. Both happen in the background and within
/// [`UnleashOptions::time_limit`](super::super::UnleashOptions::time_limit). An error here changes no decision.
#[async_trait]
pub trait Backup: fmt::Debug + Send + Sync + 'static {
    /// The bytes of the last [`save`](Self::save); `None` if there are none.
    ///
    /// # Errors
    ///
    /// [`BackupError`]; the declared defaults apply then.
    ///
    /// # Cancel safety
    ///
    /// Must be cancel safe.
    async fn load(&self) -> Result<Option<Bytes>, BackupError>;

    /// Replaces the stored state atomically: a concurrent load returns either the old state or the new one.
    ///
    /// # Errors
    ///
    /// [`BackupError`]; the previous state must stay.
    ///
    /// # Cancel safety
    ///
    /// Must be cancel safe: when dropped, either the old state or the new one is stored.
    async fn save(&self, state: Bytes) -> Result<(), BackupError>;
}

/// Why a state could not be saved or loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// The stored state is truncated, changed, or has an unknown format.
    #[error("the stored state is damaged: {0}; it is replaced by the next change of the flags")]
    Damaged(String),
    /// The state is larger than the limit.
    #[error(
        "the state has {bytes} bytes, more than the limit of {limit} bytes; archive flags that are no longer used"
    )]
    TooLarge {
        /// The size of the state, in bytes.
        bytes: u64,
        /// The largest size, in bytes.
        limit: usize,
    },
    /// The place is unreachable or refuses.
    #[error("{0}")]
    Place(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl BackupError {
    /// Wraps the place's own error.
    pub fn place(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Place(error.into())
    }
}
