//! What a request touches: the gate, the [`Migration`] handle, the fence and pinned transactions.

mod at_phase;
mod atomics;
mod columns;
mod error;
mod fence;
mod gate;
#[cfg(test)]
mod gate_tests;
mod key;
mod migration;
mod migrations;
mod side_metrics;
mod work_metrics;
mod write_times;

pub use at_phase::AtPhase;
pub use columns::{MirroredColumns, SideColumns};
pub(crate) use error::{Duplicate, duplicate_key};
pub use error::{Error, is_retryable};
#[cfg(feature = "deadpool")]
pub use fence::DeadpoolTx;
pub use fence::{FencedPool, FencedTransaction, Isolation, PinnedTx, SqlxTx};
pub use gate::Pin;
pub use key::Key;
pub use migration::Migration;
pub use migrations::Migrations;
#[doc(hidden)]
pub use side_metrics::{CallTimer, SideCall};
pub(crate) use write_times::WriteCounts;
#[cfg(test)]
pub(crate) use write_times::WriteTimes;
