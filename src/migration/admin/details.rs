//! What changes slowly about a migration, for a page that shows all of it.

use std::sync::Arc;

use super::error::{AdminError, find};
use super::plan::{PlanReport, plan_of};
use super::reports::{BadRow, Difference, Event, ExternalWriteReport, RepairReport};
use super::rollback::{RollbackReport, way_back};
use crate::ledger::{Ledger, history, reports};
use crate::migration::coordinator::parse_phase;
use crate::migration::phase::Phase;

/// What a page of a migration shows besides its report.
#[derive(Default)]
pub(crate) struct Details {
    /// The steps ahead.
    pub(crate) plan: Option<Arc<PlanReport>>,
    /// The steps back to reading the old side, from a phase that reads the new one.
    pub(crate) way_back: Option<RollbackReport>,
    /// Rows that wait for repair.
    pub(crate) repairs: Vec<RepairReport>,
    /// Rows that could not be mapped.
    pub(crate) bad_rows: Vec<BadRow>,
    /// Rows that the latest scan found to differ.
    pub(crate) differences: Vec<Difference>,
    /// External writers.
    pub(crate) external_writes: Vec<ExternalWriteReport>,
    /// What happened, newest first.
    pub(crate) history: Vec<Event>,
}

/// Reads all of it in one transaction, up to `limit` rows of each kind.
pub(crate) async fn details(ledger: &Ledger, name: &str, limit: u32) -> Result<Details, AdminError> {
    let mut tx = ledger.begin().await?;
    let found = find(&mut tx, name).await?;
    let phase = parse_phase(&found.phase)?;
    let has_way_back = found.ended_as.is_none() && (Phase::Ramp..=Phase::Retire).contains(&phase);
    let way_back = match has_way_back {
        true => Some(way_back(&mut tx, &found, phase).await?),
        false => None,
    };
    Ok(Details {
        plan: Some(Arc::new(plan_of(&mut tx, found.id, Phase::Contract).await?)),
        way_back,
        repairs: reports::repairs(&mut tx, Some(found.id), limit).await?,
        bad_rows: reports::bad_rows(&mut tx, found.id, limit).await?,
        differences: reports::differences(&mut tx, found.id, limit).await?,
        external_writes: reports::external_writes(&mut tx, Some(found.id), limit).await?,
        history: history::list(&mut tx, Some(name), limit).await?,
    })
}
