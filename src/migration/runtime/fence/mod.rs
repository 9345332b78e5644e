//! Write transactions that the database refuses when their epoch is closed.
//!
//! # The hazard
//!
//! A writer that was paused or cut off can resume long after the fleet has moved on. It still works at the old epoch, and a
//! check in its own process can come too late. The fence is a function that the database runs first in every write
//! transaction.

#[cfg(feature = "deadpool")]
mod on_deadpool;
mod on_sqlx;
mod pinned;
mod transaction;

#[cfg(feature = "deadpool")]
pub use on_deadpool::DeadpoolTx;
pub use on_sqlx::SqlxTx;
pub(crate) use pinned::Mirroring;
pub use pinned::PinnedTx;
pub use transaction::{FencedPool, FencedTransaction, Isolation};
