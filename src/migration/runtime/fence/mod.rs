//! Write transactions that the database refuses when their epoch is closed.
//!
//! # The hazard
//!
//! A writer that was paused, or cut off, may come back long after the fleet has moved on. It believes what it
//! believed before, so no check of its own can stop it. The fence is a function that the database runs first in
//! every write transaction.

#[cfg(feature = "deadpool")]
mod on_deadpool;
mod on_sqlx;
mod pinned;

#[cfg(feature = "deadpool")]
pub use on_deadpool::DeadpoolTx;
pub use on_sqlx::SqlxTx;
pub use pinned::{FencedPool, FencedTransaction, Isolation, PinnedTx};
