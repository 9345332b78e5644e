//! Sets phases and flags: in Unleash, or by SQL if there is none.

use std::time::Duration;

use cutover_testkit::UnleashAdmin;

use crate::{
    failure::{During, Failure, Result},
    ledger::{Ledger, MIGRATION},
};

/// The flag that selects the new payment flow.
const NEW_FLOW: &str = "payment-new-flow";

/// Where desired phases and flags are set.
pub(crate) enum Switchboard {
    /// The payload of a flag's variant is the phase.
    Unleash(UnleashAdmin),
    /// Column `desired` of the ledger.
    Sql(Ledger),
}

impl Switchboard {
    /// Creates the flags, so that instances find them at their start.
    pub(crate) async fn prepare(&self) -> Result<()> {
        if let Self::Unleash(unleash) = self {
            unleash.ensure_flag(MIGRATION).await.during("creating the flags in Unleash")?;
            unleash.set_variant(MIGRATION, "off").await?;
            unleash.enable(MIGRATION).await?;
            unleash.ensure_flag(NEW_FLOW).await?;
            unleash.set_rollout(NEW_FLOW, 0).await?;
            unleash.enable(NEW_FLOW).await?;
        }
        Ok(())
    }

    /// Sets the desired phase: its name, or `ramp:25`.
    pub(crate) async fn set_phase(&self, phase: &str) -> Result<()> {
        match self {
            Self::Unleash(unleash) => {
                unleash.set_variant(MIGRATION, phase).await?;
                Ok(unleash.enable(MIGRATION).await?)
            }
            Self::Sql(ledger) => ledger.set_phase(phase).await,
        }
    }

    /// Switches the migration's flag off, as in an emergency: reads go back to the old column.
    pub(crate) async fn switch_off(&self) -> Result<()> {
        match self {
            Self::Unleash(unleash) => Ok(unleash.disable(MIGRATION).await?),
            Self::Sql(ledger) => ledger.set_phase("verify").await,
        }
    }

    /// Sets the share of users with the new flow. Without Unleash, all keep the default.
    pub(crate) async fn new_flow(&self, percent: u8) -> Result<()> {
        match self {
            Self::Unleash(unleash) => Ok(unleash.set_rollout(NEW_FLOW, percent).await?),
            Self::Sql(_) => Ok(()),
        }
    }

    /// Removes the flags.
    pub(crate) async fn clear(&self) -> Result<()> {
        if let Self::Unleash(unleash) = self {
            unleash.remove(MIGRATION).await.during("removing the flags from Unleash")?;
            unleash.remove(NEW_FLOW).await?;
        }
        Ok(())
    }
}

/// Fails if the user's own Unleash already has one of the demo's flags.
pub(crate) async fn refuse_existing(url: &str, admin_token: &str) -> Result<()> {
    let client = reqwest::Client::new();
    for name in [MIGRATION, NEW_FLOW] {
        let flag = format!("{url}/api/admin/projects/default/features/{name}");
        let asked = client.get(flag).header("Authorization", admin_token).timeout(Duration::from_secs(10));
        let status = asked.send().await.during("reading flags from Unleash (UNLEASH_URL)")?.status();
        match status.as_u16() {
            404 => {}
            200 => {
                return Err(Failure::new(format!(
                    "Unleash already has a flag {name}, which the demo would change; remove the flag or use another Unleash"
                )));
            }
            401 | 403 => {
                return Err(Failure::new("Unleash rejected UNLEASH_ADMIN_TOKEN; use a token of an admin"));
            }
            other => {
                return Err(Failure::new(format!("Unleash answered {other} to a request for flag {name}")));
            }
        }
    }
    Ok(())
}
