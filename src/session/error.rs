//! What can go wrong when the store is set up.

/// Why a [`RedisStore`](super::RedisStore) was refused; all reasons at once.
///
/// What goes wrong later is a `tower_sessions_core::session_store::Error`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("session store options: {}", .0.join("; "))]
pub struct SessionError(pub(super) Vec<String>);

impl SessionError {
    /// What is wrong with each option, beginning with the field's name.
    pub fn problems(&self) -> &[String] {
        &self.0
    }
}
