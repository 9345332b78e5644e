//! What Postgres's catalog says about the two sides of a migration.

mod columns;
mod names;
mod old_side;

pub(super) use columns::column_types;
pub(super) use names::{check_name, check_table, quote, quote_table, unquote};
pub use old_side::OldSide;
