use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::SetOnce;

use crate::flags::{Backup, BackupError, FleetPolling, PostgresBackup};
use crate::ledger::Ledger;

/// Keeps the last known flags in the ledger, and shares them through it. The ledger is opened after the flags were made.
#[derive(Clone, Debug, Default)]
pub(super) struct InLedger {
    backup: Arc<SetOnce<PostgresBackup>>,
    pub(super) polling: FleetPolling,
}

impl InLedger {
    pub(super) fn opened(&self, ledger: &Ledger, service: &str) {
        // There is one ledger per instance.
        let _ = self.backup.set(PostgresBackup::new(ledger.clone(), service));
        self.polling.open(ledger, service);
    }
}

#[async_trait]
impl Backup for InLedger {
    async fn load(&self) -> Result<Option<Bytes>, BackupError> {
        self.backup.wait().await.load().await
    }

    async fn save(&self, state: Bytes) -> Result<(), BackupError> {
        self.backup.wait().await.save(state).await
    }
}
