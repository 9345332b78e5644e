use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::SetOnce;

use crate::flags::{Backup, BackupError, PostgresBackup};
use crate::ledger::Ledger;

/// Keeps the last known flags in the ledger, which is opened after the flags were made.
#[derive(Clone, Debug, Default)]
pub(super) struct InLedger(Arc<SetOnce<PostgresBackup>>);

impl InLedger {
    pub(super) fn opened(&self, ledger: &Ledger, service: &str) {
        // There is one ledger per instance.
        let _ = self.0.set(PostgresBackup::new(ledger.clone(), service));
    }
}

#[async_trait]
impl Backup for InLedger {
    async fn load(&self) -> Result<Option<Bytes>, BackupError> {
        self.0.wait().await.load().await
    }

    async fn save(&self, state: Bytes) -> Result<(), BackupError> {
        self.0.wait().await.save(state).await
    }
}
