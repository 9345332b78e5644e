//! What changes slowly about a migration.

use std::sync::Arc;

use crate::ledger::Ledger;
use crate::migration::Phase;
use crate::migration::admin::{
    AdminError, Event, ExternalWriteReport, PlanReport, RepairReport, external_writes, history, plan, repairs,
};

const SHOWN_ROWS: u32 = 20;

/// What a page of a migration shows besides its report.
#[derive(Default)]
pub struct Details {
    /// The steps ahead.
    pub plan: Option<Arc<PlanReport>>,
    /// Rows that wait for repair.
    pub repairs: Vec<RepairReport>,
    /// External writers.
    pub external_writes: Vec<ExternalWriteReport>,
    /// What happened, newest first.
    pub history: Vec<Event>,
}

impl Details {
    pub(super) async fn read(ledger: &Ledger, name: &str) -> Result<Self, AdminError> {
        Ok(Self {
            plan: Some(Arc::new(plan(ledger, name, Phase::Contract).await?)),
            repairs: repairs(ledger, Some(name), SHOWN_ROWS).await?,
            external_writes: external_writes(ledger, Some(name), SHOWN_ROWS).await?,
            history: history(ledger, Some(name), SHOWN_ROWS).await?,
        })
    }
}
