//! The ledger: the tables in schema `cutover` of the service's own Postgres, and every statement that reads or writes them.
//!
//! They hold who is alive, which epoch is current, how far long work is, and the history. The ledger lives in the same
//! database as the data, so that both are restored from the same write-ahead log.

pub(crate) mod bad_rows;
mod connection;
mod connections;
pub(crate) mod differences;
mod error;
pub(crate) mod external_writes;
pub(crate) mod jobs;
pub(crate) mod locks;
mod notifications;
pub(crate) mod repairs;
mod schema;
mod shares;
mod sqlstate;
mod transaction;
pub(crate) mod unprepared;

pub use connection::Ledger;
pub use error::LedgerError;
pub(crate) use notifications::NO_NOTIFICATIONS;
pub use schema::SCHEMA_VERSION;
#[cfg(test)]
pub(crate) use shares::Share;
pub(crate) use shares::{Capacity, ShareRequest, ShareTable};
pub(crate) use sqlstate::{is_lock_timeout, sql_state};
pub(crate) use transaction::{READ_COMMITTED, begin};
