use super::schema::SCHEMA_VERSION;

/// What can be wrong with the ledger.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// The database did not answer, or refused a statement.
    #[error("the ledger's database: {0}")]
    Database(#[from] sqlx::Error),
    /// The schema isn't there.
    #[error(
        "schema `cutover` is not installed in this database: `cutover install` does it, or the first start of a service whose role may create it"
    )]
    Missing,
    /// The schema isn't there and this role may not create it.
    #[error(
        "schema `cutover` is not installed and role {role:?} may not create it: run `cutover install --grant-to \
         {role}` once with a role that has CREATE on the database"
    )]
    NotInstalled {
        /// The role that was refused.
        role: String,
    },
    /// This role lacks a right on an installed ledger.
    #[error("role {role:?} lacks rights on schema `cutover`: {message}")]
    NoRights {
        /// The role that was refused.
        role: String,
        /// What the server said.
        message: String,
    },
    /// An older library installed the ledger.
    #[error(
        "the ledger has version {found} and this library needs {SCHEMA_VERSION}: `cutover install` upgrades it, or the first \
         start of a service whose role owns it; builds that are running go on working"
    )]
    Older {
        /// The ledger's version.
        found: i32,
    },
    /// An older library installed the ledger, and this role may not upgrade it.
    #[error(
        "the ledger has version {found}, this library needs {SCHEMA_VERSION}, and role {role:?} may not upgrade it: run \
         `cutover install` once with the role that owns schema `cutover`; builds that are running go on working"
    )]
    NotUpgraded {
        /// The role that was refused.
        role: String,
        /// The ledger's version.
        found: i32,
    },
    /// The ledger could not be upgraded because transactions were always in the way.
    #[error(
        "the ledger could not be upgraded: transactions that write keep its tables locked; try again when none is open for long"
    )]
    Busy,
    /// A newer library installed a ledger that this one can't work with.
    #[error(
        "the ledger has version {found} and needs a library for version {needs} or newer; this one is for \
         {SCHEMA_VERSION}: deploy a build with a newer `cutover`"
    )]
    Newer {
        /// The ledger's version.
        found: i32,
        /// The oldest version it still works with.
        needs: i32,
    },
    /// The connection leads to a standby.
    #[error("the ledger's database is a read-only standby: connect to the primary")]
    ReadOnly,
    /// The server is too old.
    #[error("the server is PostgreSQL {0}: 13 or newer is needed")]
    ServerTooOld(i32),
    /// An option makes no sense.
    #[error("{field}: {problem}")]
    Option {
        /// The option's name.
        field: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
}
