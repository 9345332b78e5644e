//! A database with a ledger.

use sqlx::postgres::PgConnectOptions;
use tokio::sync::OnceCell;

use crate::ledger::{Ledger, LedgerError, remedy};
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
        format!("database {name:?} at {at}, role {role:?}: {text}{}", what_to_check(found, options))
    }

    /// The database of a ledger that is connected already.
    pub fn connected(ledger: Ledger, options: PgConnectOptions) -> Self {
        Self { name: None, options, ledger: OnceCell::new_with(Some(ledger)) }
    }
}

/// What in the address or in the server's settings may be wrong.
fn what_to_check(error: &LedgerError, options: &PgConnectOptions) -> String {
    let LedgerError::Database(error) = error else { return String::new() };
    let hint = match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut => {
            Some("check host and port, and that the server can be reached from here".to_owned())
        }
        _ => remedy(error, options),
    };
    hint.map_or_else(String::new, |hint| format!("; hint: {hint}"))
}
