//! What Postgres's catalog says about the two sides of a migration.

mod names;
mod old_side;
mod settings;

pub(super) use names::{check_name, check_table, quote, quote_table, unquote};
pub use old_side::OldSide;
pub(super) use settings::{ROW_WORK_SETTINGS, ROW_WORK_SETTINGS_QUERY};
