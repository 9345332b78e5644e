//! Changes of the schema under load: DDL, index builds and the guard trigger.

mod alter;
mod commit_check;
mod ensure_indexes;
mod guard;
mod guard_arming;
mod guard_conditions;
mod guard_refusals;
mod index;
mod index_definition;
mod partitioned_index;

pub(super) use alter::{NO_LIMIT, alter, alter_all, drop_old_side, each_of};
pub(super) use ensure_indexes::{drop_index, ensure_indexes, run_unfenced};
pub(super) use guard::GuardTrigger;
pub(super) use index_definition::Index;
