//! The last state in the ledger's database.

use async_trait::async_trait;
use bytes::Bytes;

use super::{Backup, BackupError, seal};
use crate::ledger::{Ledger, flag_states};

/// The last state in table `cutover.flag_states` of the ledger. It needs no other server and is as durable as the data.
#[derive(Clone, Debug)]
pub struct PostgresBackup {
    ledger: Ledger,
    name: String,
}

impl PostgresBackup {
    /// `name` is the key of the row; use the name of the service. Each environment has its own ledger.
    pub fn new(ledger: Ledger, name: impl Into<String>) -> Self {
        Self { ledger, name: name.into() }
    }
}

#[async_trait]
impl Backup for PostgresBackup {
    async fn load(&self) -> Result<Option<Bytes>, BackupError> {
        let stored = flag_states::load(&self.ledger, &self.name, seal::LARGEST_SEALED).await;
        let Some(stored) = stored.map_err(BackupError::place)? else { return Ok(None) };
        match stored.state {
            Some(state) => Ok(Some(state.into())),
            None => Err(seal::too_large(stored.bytes)),
        }
    }

    async fn save(&self, state: Bytes) -> Result<(), BackupError> {
        flag_states::save(&self.ledger, &self.name, &state).await.map_err(BackupError::place)
    }
}
