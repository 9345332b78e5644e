//! The switches that a person flips: in Unleash, or by SQL where there is none.

use std::time::Duration;

use cutover_testkit::UnleashAdmin;

use crate::{
    failure::{During, Failure, Result},
    ledger::{Ledger, MIGRATION},
};

/// Which users take the new payment flow.
const NEW_FLOW: &str = "payment-new-flow";

/// Where phases are asked for.
pub(crate) enum Switchboard {
    /// A flag's variant names the phase.
    Unleash(UnleashAdmin),
    /// Column `desired` of the ledger.
    Sql(Ledger),
}

impl Switchboard {
    /// Makes the flags, so that instances find them when they start.
    pub(crate) async fn prepare(&self) -> Result<()> {
        if let Self::Unleash(unleash) = self {
            unleash.ensure_flag(MIGRATION).await.during("making the flags in Unleash")?;
            unleash.set_variant(MIGRATION, "off").await?;
            unleash.enable(MIGRATION).await?;
            unleash.ensure_flag(NEW_FLOW).await?;
            unleash.set_rollout(NEW_FLOW, 0).await?;
            unleash.enable(NEW_FLOW).await?;
        }
        Ok(())
    }

    /// Asks for a phase: its name, or `ramp:25`.
    pub(crate) async fn set_phase(&self, phase: &str) -> Result<()> {
        match self {
            Self::Unleash(unleash) => {
                unleash.set_variant(MIGRATION, phase).await?;
                Ok(unleash.enable(MIGRATION).await?)
            }
            Self::Sql(ledger) => ledger.set_phase(phase).await,
        }
    }

    /// What somebody does in an emergency: the flag goes off, and reads go back to the old column.
    pub(crate) async fn switch_off(&self) -> Result<()> {
        match self {
            Self::Unleash(unleash) => Ok(unleash.disable(MIGRATION).await?),
            Self::Sql(ledger) => ledger.set_phase("verify").await,
        }
    }

    /// Without Unleash everybody keeps the flow that the service begins with.
    pub(crate) async fn new_flow(&self, percent: u8) -> Result<()> {
        match self {
            Self::Unleash(unleash) => Ok(unleash.set_rollout(NEW_FLOW, percent).await?),
            Self::Sql(_) => Ok(()),
        }
    }

    /// Takes the flags away again.
    pub(crate) async fn clear(&self) -> Result<()> {
        if let Self::Unleash(unleash) = self {
            unleash.remove(MIGRATION).await.during("removing the flags from Unleash")?;
            unleash.remove(NEW_FLOW).await?;
        }
        Ok(())
    }
}

/// In somebody's own Unleash, a flag of this name is not the demo's to change.
pub(crate) async fn refuse_existing(url: &str, admin_token: &str) -> Result<()> {
    let client = reqwest::Client::new();
    for name in [MIGRATION, NEW_FLOW] {
        let flag = format!("{url}/api/admin/projects/default/features/{name}");
        let asked = client.get(flag).header("Authorization", admin_token).timeout(Duration::from_secs(10));
        let status = asked.send().await.during("asking Unleash (UNLEASH_URL) for its flags")?.status();
        match status.as_u16() {
            404 => {}
            200 => {
                return Err(Failure::new(format!(
                    "Unleash has a flag {name} already, which the demo would change; remove it, or use another Unleash"
                )));
            }
            401 | 403 => return Err(Failure::new("Unleash does not accept UNLEASH_ADMIN_TOKEN")),
            other => return Err(Failure::new(format!("Unleash answers {other} when asked for flag {name}"))),
        }
    }
    Ok(())
}
