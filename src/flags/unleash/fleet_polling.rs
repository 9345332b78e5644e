//! What an application sets so that one instance polls for the fleet.

use std::sync::Arc;

use tokio::sync::SetOnce;

use crate::ledger::Ledger;

/// Where the instances of a fleet share the state of their flags, so that only one of them polls the server often.
///
/// Clones share the ledger.
#[derive(Clone, Debug, Default)]
pub struct FleetPolling(Arc<SetOnce<(Ledger, String)>>);

impl FleetPolling {
    /// Shares the state through the ledger with all instances of a service that use the same server and token.
    pub fn new(ledger: Ledger, service: impl Into<String>) -> Self {
        let polling = Self::default();
        polling.open(&ledger, &service.into());
        polling
    }

    /// The ledger and the service's name; `None` if the ledger is not open yet.
    pub(super) fn get(&self) -> Option<&(Ledger, String)> {
        self.0.get()
    }

    /// Waits until the ledger is open. Cancel safe.
    pub(super) async fn opened(&self) {
        self.0.wait().await;
    }

    /// Sets the ledger, which is opened after the flags were made. Until then, the instance polls as if it were alone.
    pub(crate) fn open(&self, ledger: &Ledger, service: &str) {
        // There is one ledger per instance.
        let _ = self.0.set((ledger.clone(), service.to_owned()));
    }
}
