//! Passes over all rows in batches: the copy in both directions, and the comparison.

mod column_type;
mod compare;
mod copy;
mod errors;
mod explain;
mod governor;
pub(super) mod job;
pub(super) mod keyset;
mod kind;
mod mapped_value;
mod mapping;
mod options;
mod pace;
pub(super) mod pass;
mod pass_rows;
mod query;
pub(super) mod repair;
mod sides;
mod table_size;
mod throttle;
mod transaction;
mod vacuum;
mod value;

pub(super) use column_type::ColumnType;
pub(super) use errors::is_transient;
pub(super) use keyset::{Keyset, Span, display_key};
pub(super) use kind::PassKind;
pub use mapped_value::MappedValue;
pub use mapping::{MapRows, map_each};
pub(super) use mapping::{Mapping, MappingCode, NEEDS_FORWARD_ROWS};
pub use options::BatchOptions;
pub(super) use pass::Outline;
pub(super) use sides::{MappedRows, Scope, Sides};
pub use throttle::Throttle;
pub(super) use transaction::{BATCH_LIMITS, MAX_FAILURES, back_off, begin, begin_unpaused};
