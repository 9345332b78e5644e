use std::time::Duration;

use super::schema::SCHEMA_VERSION;
use super::sqlstate::{describe_error, sql_state};
use crate::config::ConfigError;

/// An error of the ledger.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// The database did not answer, or refused a statement.
    #[error("ledger database: {}{}", describe_error(.0), hint(.0))]
    Database(#[from] sqlx::Error),
    /// The database did not answer in time. It may still have executed what it was sent.
    #[error(
        "ledger database: no answer within {limit:?}; check that it is reachable and that no transaction blocks schema `cutover`"
    )]
    Timeout {
        /// The time limit that expired.
        limit: Duration,
    },
    /// The schema does not exist.
    #[error(
        "schema `cutover` does not exist in this database; hint: run `cutover install`, or start a service whose role has \
         CREATE on the database"
    )]
    Missing,
    /// The schema does not exist and this role may not create it.
    #[error(
        "schema `cutover` does not exist, and role {role:?} may not create it; hint: run `cutover install --grant-to \
         {role}` once with a role that has CREATE on the database"
    )]
    NotInstalled {
        /// The role that was refused.
        role: String,
    },
    /// This role lacks a right on an installed ledger.
    #[error(
        "permission denied for role {role:?} on schema `cutover`: {message}; hint: run `cutover install --grant-to {role}` \
         with the role that owns the schema"
    )]
    NoRights {
        /// The role that was refused.
        role: String,
        /// The server's message.
        message: String,
    },
    /// An older library installed the ledger.
    #[error(
        "schema `cutover` has version {found}, and this library needs version {needs}; hint: run `cutover install`, or start \
         a service whose role owns the schema; running builds keep working during the upgrade"
    )]
    Older {
        /// The ledger's version.
        found: i32,
        /// The version that this library needs.
        needs: i32,
    },
    /// An older library installed the ledger, and this role may not upgrade it.
    #[error(
        "schema `cutover` has version {found}, this library needs version {needs}, and role {role:?} may not upgrade it; \
         hint: run `cutover install` once with the role that owns the schema; running builds keep working during the upgrade"
    )]
    NotUpgraded {
        /// The role that was refused.
        role: String,
        /// The ledger's version.
        found: i32,
        /// The version that this library needs.
        needs: i32,
    },
    /// The ledger could not be upgraded, because a lock on its tables was not granted in time.
    #[error(
        "could not upgrade schema `cutover`: open transactions hold locks on its tables; hint: end transactions that have \
         been open for long (see pg_stat_activity and pg_prepared_xacts) and try again"
    )]
    Busy,
    /// A newer library installed a ledger that this one cannot work with.
    #[error(
        "schema `cutover` has version {found}, which needs a library for version {needs} or newer; this library is for \
         version {SCHEMA_VERSION}; hint: deploy a build with a newer `cutover`"
    )]
    Newer {
        /// The ledger's version.
        found: i32,
        /// The oldest version of the library that it still works with.
        needs: i32,
    },
    /// The connection leads to a standby.
    #[error("the ledger's database is a read-only standby; hint: connect to the primary")]
    ReadOnly,
    /// Transactions of the role are read-only by a setting.
    #[error("transactions of role {role:?} are read-only; hint: {remedy}")]
    ReadOnlySession {
        /// The role that was refused.
        role: String,
        /// What ends that, as a statement.
        remedy: String,
    },
    /// The server is too old.
    #[error("the server is PostgreSQL {0}; hint: use version 13 or newer")]
    ServerTooOld(i32),
    /// Options or declarations that cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// What to do about an error of the database, where the library knows it.
pub(crate) fn hint(error: &sqlx::Error) -> &'static str {
    let message = error.as_database_error().map_or("", |refusal| refusal.message());
    match sql_state(error).as_deref() {
        // The right to connect is no right on the ledger.
        Some("42501") if !message.contains("for database") => {
            "; hint: grant it to the role; for an object of schema cutover, run `cutover install --grant-to ROLE` with the role \
             that owns the schema"
        }
        Some("25006") => {
            "; hint: the role's transactions are read-only (default_transaction_read_only), or the server is a standby"
        }
        Some("25P03") => {
            "; hint: a mapping in Rust took, or the process was paused, for longer than a transaction may rest (10 s, or less if the \
             role's idle_in_transaction_session_timeout is); make the mapping faster, or raise that setting"
        }
        Some("53100") => "; hint: free space on the server's disk",
        Some("57014") => "; hint: unless a person cancelled it, raise the role's statement_timeout",
        _ => "",
    }
}
