//! The repositories of both sides behind the interface of one: dual writes, shadow reads and repair.

mod closures;
mod dual_write;
mod reading;
mod repair;
mod repository_error;
mod rows;
mod shadow;
mod write_steps;

pub use dual_write::{DualWrite, Separate};
pub use reading::{Reading, Reads};
pub use repair::Repaired;
pub(super) use repair::{due_repairs, finish_repair, may_repair};
pub use repository_error::RepositoryError;
pub use rows::{Keyed, Rows};
pub use shadow::{Compared, Shadow, ShadowOptions};
#[doc(hidden)]
pub use write_steps::{Guard, Writes, check_same_key, explain_duplicate, inserted_key};
