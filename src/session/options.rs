//! How sessions are stored.

use std::time::Duration;

use crate::config::{ConfigError, Problem};

/// How sessions are stored.
///
/// A struct literal ends with `..RedisStoreOptions::default()`, so new fields do not break it.
#[derive(Clone, Debug)]
pub struct RedisStoreOptions {
    /// The beginning of each key. Default `session:`.
    pub prefix: String,
    /// The time limit of each operation, including the wait for a connection. Default 1 s.
    pub time_limit: Duration,
    /// What happens if two requests set one key to different values at the same time. Default
    /// [`ConflictPolicy::LastWriteWins`].
    pub on_conflict: ConflictPolicy,
}

impl Default for RedisStoreOptions {
    fn default() -> Self {
        Self {
            prefix: "session:".to_owned(),
            time_limit: Duration::from_secs(1),
            on_conflict: ConflictPolicy::LastWriteWins,
        }
    }
}

impl RedisStoreOptions {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let mut problems = Vec::new();
        if self.prefix.is_empty() {
            let problem = "is empty, but other data may share this Redis; use one like `session:`";
            problems.push(Problem::new("prefix", problem));
        }
        if self.time_limit.is_zero() {
            problems.push(Problem::new("time_limit", "0 s is too short; use a time above zero"));
        }
        ConfigError::check(problems)
    }
}

/// What happens if two requests of one session set one key to different values at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConflictPolicy {
    /// The later save wins, and `cutover_session_conflicts_total` counts the conflict.
    LastWriteWins,
    /// The later save is an error, and its request a 500. For values that must not be overwritten, such as a balance.
    Refuse,
}
