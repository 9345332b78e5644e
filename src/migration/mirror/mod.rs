//! A new side in another database: a second Postgres, a Redis, or any store that has a conditional write.
//!
//! # The hazard
//!
//! No transaction spans two databases. A service that writes one and then the other loses the second write if it dies in
//! between, and two that write the same key at once may leave the older value on one side.
//!
//! Here the transaction on the service's own database records the key in the ledger (`cutover.repairs`), with a version
//! from a sequence of that database. The other store accepts a row only if its version is higher than the one that the store
//! has. The record stays until the row has arrived. So every committed write arrives, whatever the order of the attempts. A key that is still
//! recorded is read from the side that has the write. From `retire` on the other store is written first, inside the fenced
//! transaction that holds the record of the key.
//!
//! # What it does not cover
//!
//! External writers: the old side has no guard trigger here. Only the scan can find a write that bypasses [`Mirror`]. From
//! `retire` on such a write is lost.
//!
//! From `retire` on, a write whose client is cut off in the middle may still arrive at the store, as with any write whose
//! outcome is unknown. If the migration goes back from `retire` to a phase that reads the old side, such a late write
//! leaves the sides different until the next scan reports it.

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
