//! A database with a ledger.

use sqlx::postgres::PgConnectOptions;
use tokio::sync::OnceCell;

use crate::ledger::{Ledger, LedgerError, sql_state};
use crate::migration::admin::AdminError;

/// A database with a ledger. It is connected to when it is first used, and again after a failure.
pub struct Database {
    /// `None`: it is the only one, of `--database-url`.
    pub name: Option<String>,
    /// How to connect to it.
    pub options: PgConnectOptions,
    ledger: OnceCell<Ledger>,
}

impl Database {
    /// A database that is connected to when it is first used.
    pub fn new(name: Option<String>, options: PgConnectOptions) -> Self {
        Self { name, options, ledger: OnceCell::new() }
    }

    /// The ledger. Only `install` may change the schema.
    pub async fn ledger(&self) -> Result<&Ledger, AdminError> {
        let connect = || async { Ok(Ledger::existing(self.options.clone()).await?) };
        self.ledger.get_or_try_init(connect).await
    }

    /// An error as text. One of the ledger names the database, because people have several, and what to check.
    pub fn describe(&self, error: &AdminError) -> String {
        let found = match error {
            AdminError::Ledger(found) if !matches!(found, LedgerError::Config(_)) => found,
            other => return other.to_string(),
        };
        let (options, text) = (&self.options, found.to_string());
        let at = match options.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => format!("{}:{}", options.get_host(), options.get_port()),
        };
        let role = options.get_username();
        let name = options.get_database().unwrap_or(role);
        let text = text.strip_prefix("ledger database: ").unwrap_or(&text);
        format!("database {name:?} at {at}, role {role:?}: {text}{}", what_to_check(found))
    }

    /// The database of a ledger that is connected already.
    pub fn connected(ledger: Ledger, options: PgConnectOptions) -> Self {
        Self { name: None, options, ledger: OnceCell::new_with(Some(ledger)) }
    }
}

/// What in the address may be wrong.
fn what_to_check(error: &LedgerError) -> &'static str {
    let LedgerError::Database(error) = error else { return "" };
    match (error, sql_state(error).as_deref()) {
        (sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut, _) => {
            "; hint: check host and port, and that the server can be reached from here"
        }
        (_, Some("28P01" | "28000")) => "; hint: check role and password, and `pg_hba.conf` of the server",
        (_, Some("3D000")) => "; hint: check the name of the database",
        (_, Some("53300")) => {
            "; hint: end idle sessions (`select pid, application_name, state from pg_stat_activity`), or raise the limit: \
             `max_connections`, `alter role … connection limit`, `alter database … connection limit`"
        }
        _ => "",
    }
}
