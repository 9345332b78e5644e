//! The ledger: the tables in schema `cutover` of the service's own Postgres, and every statement that reads or writes them.
//!
//! The tables hold which instances are alive, which epoch is current, how far long work is, and the history. They are in the
//! same database as the data, so that both are restored from the same write-ahead log.
//!
//! Each file holds the statements on one table or for one concern, as functions that take and return plain values. This
//! module does not interpret phases: it stores their names.

pub(crate) mod acknowledgements;
pub(crate) mod bad_rows;
pub(crate) mod blockers;
pub(crate) mod commands;
mod connection;
mod connections;
pub(crate) mod differences;
pub(crate) mod endings;
pub(crate) mod epochs;
mod error;
mod evidence;
pub(crate) mod external_writes;
pub(crate) mod fence;
#[cfg(feature = "unleash")]
pub(crate) mod flag_polls;
#[cfg(feature = "unleash")]
pub(crate) mod flag_states;
pub(crate) mod fleets;
pub(crate) mod guard_looks;
pub(crate) mod guard_triggers;
pub(crate) mod history;
pub(crate) mod instances;
pub(crate) mod jobs;
pub(crate) mod key_mirror;
pub(crate) mod leadership;
pub(crate) mod literal;
pub(crate) mod locks;
pub(crate) mod migrations;
pub(crate) mod notifications;
pub(crate) mod outlook;
pub(crate) mod plans;
mod pooler;
pub(crate) mod read_counts;
mod refusals;
pub(crate) mod repairs;
pub(crate) mod reports;
pub(crate) mod retention;
mod schema;
mod shares;
pub(crate) mod sides;
mod sqlstate;
pub(crate) mod standbys;
mod transaction;
pub(crate) mod unprepared;
pub(crate) mod write_watch;

pub use connection::Ledger;
pub(crate) use connection::pooler_at;
pub use error::LedgerError;
pub(crate) use error::hint;
pub(crate) use evidence::evidence;
pub(crate) use notifications::NO_NOTIFICATIONS;
#[cfg(feature = "console")]
pub(crate) use refusals::remedy;
pub use schema::SCHEMA_VERSION;
#[doc(hidden)]
pub use schema::Step;
pub(crate) use shares::{ShareBudget, ShareRequest};
pub(crate) use sqlstate::{describe_error, is_lock_timeout, is_refusal, sql_state};
pub(crate) use transaction::{WORK, begin, begin_work};
