//! Passes over all rows in batches: the copy in both directions, and the comparison.

mod job;
pub(super) mod keyset;
mod kind;
mod mapping;
mod options;
mod pace;
pub(super) mod pass;
mod queries;
pub(super) mod repair;
mod table_size;
mod throttle;
mod transaction;
mod vacuum;

pub(super) use job::{Claim, Extent, Job, Range, Step};
pub(super) use keyset::Keyset;
pub(super) use kind::PassKind;
pub use mapping::{MapRows, map_each};
pub(super) use mapping::{Mapping, MappingCode, NEEDS_FORWARD_ROWS};
pub use options::BatchOptions;
pub(super) use pass::Outline;
pub(super) use queries::{Scope, Sides};
pub(super) use table_size::TableSize;
pub use throttle::Throttle;
pub(super) use transaction::{FAILURES, LIMITS, begin, begin_unpaused, give_way, passes};
