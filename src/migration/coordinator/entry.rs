use sqlx::PgConnection;

use super::spec::MigrationSpec;
use super::state::parse_phase;
use crate::fleet::Fleet;
use crate::ledger::migrations::{self, FollowedRow};
use crate::migration::phase::{Percent, Phase, PhaseRange, may_join};
use crate::migration::runtime::Migration;

/// A migration as an instance follows it.
pub(crate) struct Entry {
    pub(crate) id: i32,
    pub(crate) name: String,
    pub(super) epoch: i32,
    pub(crate) phase: Phase,
    /// The phase of the previous epoch while that is still in use.
    pub(super) previous_phase: Option<Phase>,
    /// How it ended, if it has. There is nothing left that builds have to agree on.
    pub(super) ended: Option<Ending>,
    pub(super) ramp: Percent,
    /// The epoch that this instance has acknowledged, if it takes part.
    pub(super) acknowledged: Option<i32>,
}

/// How a migration ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Only the new side is left.
    Finished,
    /// Only the old side is used.
    Abandoned,
}

impl Ending {
    /// The column has a check for these two names.
    fn parse(name: &str) -> Self {
        if name == "abandoned" { Self::Abandoned } else { Self::Finished }
    }
}

impl TryFrom<FollowedRow> for Entry {
    type Error = sqlx::Error;

    fn try_from(row: FollowedRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            phase: parse_phase(&row.phase)?,
            previous_phase: row.previous_phase.as_deref().map(parse_phase).transpose()?,
            ramp: u8::try_from(row.ramp_percent).ok().and_then(Percent::new).unwrap_or(Percent::ALL),
            id: row.id,
            name: row.name,
            epoch: row.epoch,
            ended: row.ended_as.as_deref().map(Ending::parse),
            acknowledged: row.acknowledged,
        })
    }
}

impl Entry {
    /// The fleet's migrations, also those that this build does not declare.
    pub(crate) async fn of_fleet(
        connection: &mut PgConnection,
        fleet: &str,
        instance: i64,
    ) -> Result<Vec<Self>, sqlx::Error> {
        migrations::of_fleet(connection, fleet, instance).await?.into_iter().map(Self::try_from).collect()
    }

    /// The migrations that this build declares, in one message.
    pub(super) async fn declared(
        fleet: &Fleet,
        declared: &[(MigrationSpec, Migration)],
        instance: i64,
    ) -> Result<Vec<Self>, sqlx::Error> {
        let ids: Vec<i32> = declared.iter().map(|(_, migration)| migration.id()).collect();
        let rows = migrations::with_ids(fleet.ledger(), &ids, instance).await?;
        rows.into_iter().filter(|row| row.fleet == fleet.name()).map(Self::try_from).collect()
    }

    /// Whether it is this migration. After a failover to a lagging standby the same id can stand for another one, so the name
    /// is compared too.
    pub(super) fn is_of(&self, migration: &Migration) -> bool {
        self.id == migration.id() && self.name == migration.name()
    }

    /// Whether builds have to agree on the phase: a phase after `off` is in use, and the old side still exists.
    pub(super) fn is_past_off(&self) -> bool {
        let in_use = [Some(self.phase), self.previous_phase];
        self.ended.is_none() && in_use.into_iter().flatten().any(|phase| phase != Phase::Off)
    }

    /// Whether `expand` may still come.
    pub(crate) fn can_expand(&self) -> bool {
        self.phase == Phase::Off && self.ended.is_none()
    }

    /// Whether the migration is at its first epoch.
    pub(super) fn is_first(&self) -> bool {
        self.epoch == 1
    }

    /// Why a build with this declaration, or without one, cannot run at the migration's present phase.
    pub(crate) fn refusal(&self, declared: Option<&MigrationSpec>) -> Option<String> {
        if declared.is_none() && self.ended.is_some() {
            return None;
        }
        let range = declared.map_or(PhaseRange::UNAWARE, |spec| spec.range);
        if may_join(range, [Some(self.phase), self.previous_phase].into_iter().flatten()) {
            return None;
        }
        let what = match declared {
            Some(spec) if self.phase == Phase::Off && self.is_first() => format!(
                "this build can run {range}; to fix: first deploy a build that can run `off`, or, if this database was \
                 created with the new side only, run `cutover baseline {}`",
                spec.name
            ),
            Some(_) => format!("this build can run {range}"),
            None => "this build does not declare it, which a build may do once the old side is dropped; \
                     to fix: deploy a build that declares it, or finish the migration first"
                .into(),
        };
        let ended = match self.ended {
            None => "",
            Some(Ending::Finished) => " (finished)",
            Some(Ending::Abandoned) => " (abandoned)",
        };
        Some(format!("migration {:?} is in `{}`{ended}, and {what}", self.name, self.phase))
    }
}
