//! Two repositories that look like one: dual writes, keys, shadow reads and repair.

mod dual;
mod key;
mod repair;
mod rows;
mod shadow;

pub use dual::{DualWrite, Reading, Reads, Separate};
#[doc(hidden)]
pub use dual::{Guard, Writes, made, same};
pub use key::Key;
pub use repair::Repaired;
pub(super) use repair::{due, may_repair, settle};
pub use rows::{Keyed, Rows};
pub use shadow::{Compared, Shadow, ShadowOptions};
