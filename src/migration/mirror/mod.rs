//! A new side in another database: a second Postgres, a Redis, whatever can write on a condition.
//!
//! # The hazard
//!
//! No transaction spans two databases. A service that writes one and then the other loses the second write when it dies in
//! between, and two that write the same key at once may leave the older value on one side for good. Here the transaction
//! on the service's own database notes the key in the ledger (`cutover.repairs`), with a version that this database draws;
//! the other store takes a row only under a higher version than it has; and a note stays until its row has arrived. So
//! what was committed arrives, in whatever order it is tried, and a key that is still noted is read from the side that has
//! it. From `retire` on the other store is written first, within the fenced transaction that holds the key's note.
//!
//! # What it does not cover
//!
//! Strangers: there is no trap on the old side here. What somebody writes past [`Mirror`] is found by the scan at best, and
//! lost from `retire` on.
//!
//! A write from `retire` on that was given up half way (a client that is cut off in the middle of it) may still arrive, as
//! one whose outcome nobody was told. On the way back from `retire` to a phase that reads the old side such a latecomer
//! leaves the sides apart until the next scan names it.

mod delivery;
mod handle;
mod plan;
mod postgres;
#[cfg(feature = "redis")]
mod redis;
mod store;

pub use handle::{Mirror, MirrorError, MirrorTx};
pub use plan::MirrorMigration;
pub use postgres::PostgresMirror;
#[cfg(feature = "redis")]
pub use redis::RedisMirror;
pub use store::{MirrorSource, MirrorStore, StoreError};
