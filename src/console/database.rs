//! A database with a ledger.

use sqlx::postgres::PgConnectOptions;
use tokio::sync::OnceCell;

use crate::ledger::Ledger;
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

    /// The database of a ledger that is connected already.
    pub fn connected(ledger: Ledger, options: PgConnectOptions) -> Self {
        Self { name: None, options, ledger: OnceCell::new_with(Some(ledger)) }
    }
}
