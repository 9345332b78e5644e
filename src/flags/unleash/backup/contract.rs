//! What a place for the last known state has to do.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;

/// A place that keeps the last known state: [`FileBackup`](super::FileBackup),
/// [`PostgresBackup`](super::PostgresBackup), `RedisBackup`, or one of your own.
///
/// One place per service and environment; its instances share it, because they all have the same
/// state. A state is asked for once, at the start, and kept whenever it changed; both happen in
/// the background and within [`UnleashOptions::time_limit`](super::super::UnleashOptions::time_limit).
/// No failure here changes a decision.
#[async_trait]
pub trait Backup: fmt::Debug + Send + Sync + 'static {
    /// What was kept, as [`save`](Self::save) was given it; `None` when nothing was.
    ///
    /// # Errors
    ///
    /// [`BackupError`]: defaults count then.
    ///
    /// # Cancel safety
    ///
    /// Has to be safe.
    async fn load(&self) -> Result<Option<Bytes>, BackupError>;

    /// Replaces what was kept, in one step: who loads meanwhile gets the one or the other.
    ///
    /// # Errors
    ///
    /// [`BackupError`]: what was kept before has to stay.
    ///
    /// # Cancel safety
    ///
    /// When dropped, the old state or the new one is kept, nothing in between.
    async fn save(&self, state: Bytes) -> Result<(), BackupError>;
}

/// Why a state was not kept, or what was kept can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// It is not what was kept: cut off, changed, or of another format.
    #[error("what was kept is damaged: {0}")]
    Damaged(String),
    /// More than a state may have.
    #[error("a state of {bytes} bytes is refused: at most {limit} are kept")]
    TooLarge {
        /// How many there are.
        bytes: u64,
        /// How many there may be.
        limit: usize,
    },
    /// The place can't be reached or refuses.
    #[error("{0}")]
    Place(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl BackupError {
    /// The place's own error.
    pub fn place(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Place(error.into())
    }
}
