use std::fmt;

use super::{Blocker, Observed, Phase, PreviousEpoch, Side};

/// A condition that a step requires.
///
/// [`requirements`] is the only table of them: the driver goes by it, and `cutover plan` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Requirement {
    /// Nothing runs at an epoch before the current one.
    PreviousEpochDrained,
    /// Every live build supports the next phase.
    PhaseSupported,
    /// The new side exists, with its guard trigger.
    NewSideExists,
    /// The side is complete.
    Complete(Side),
    /// No external writer wrote what the guard trigger cannot mirror, for the quiet period.
    NoUnmirroredExternalWrites,
    /// No external writer is in the middle of a transaction. The move itself checks this, under a lock that stops new
    /// ones.
    NoOpenExternalTransaction,
    /// No row is known to differ between the sides.
    NoRepairs,
    /// No row is known whose old side is behind.
    OldSideRepaired,
    /// A scan of all rows since the last backfill found no difference.
    CleanScan,
    /// A scan mapped every value from new to old and back.
    Reversible,
    /// The server refuses what the change forbids, so that this is noticed while there is a way back.
    Enforced,
    /// The server does not refuse any more what the change forbids.
    Relaxed,
    /// Every standby that serves reads has replayed what the next phase reads or drops.
    StandbysCaughtUp,
    /// A person approved the drop of the old side.
    Approved,
    /// `retire` has lasted for the soak time.
    Soaked,
    /// The catalog shows nothing about the tables that has to be changed first. The new side has what is attached to
    /// the old one, unless the plan waives it.
    TablesReady,
    /// Nothing else depends on the old side. The drop itself checks this.
    NoDependents,
}

/// What the step from `from` to `to` requires besides [`EVERY_STEP`].
const fn specific(from: Phase, to: Phase) -> &'static [Requirement] {
    use Requirement::*;
    match (from, to) {
        (Phase::Off, Phase::Expand) => &[NewSideExists],
        (Phase::Expand, Phase::Backfill) => &[TablesReady],
        (Phase::Backfill, Phase::Verify) => &[Complete(Side::New), NoUnmirroredExternalWrites, TablesReady],
        (Phase::Verify, Phase::Ramp) => &[
            Complete(Side::New),
            // A row must arrive before it is read.
            NoRepairs,
            NoUnmirroredExternalWrites,
            NoOpenExternalTransaction,
            CleanScan,
            TablesReady,
            // On a lagging standby the new side is not stale but empty.
            StandbysCaughtUp,
        ],
        // From `switch` on the new side has authority, and nothing maps the old side to it any more.
        (Phase::Ramp, Phase::Switch) => &[NoRepairs, Reversible, TablesReady],
        // After the step no side is behind that is still written, and external writes of the old side are refused.
        (Phase::Switch, Phase::Retire) => &[NoRepairs, NoOpenExternalTransaction, TablesReady, Enforced],
        (Phase::Retire, Phase::Contract) => {
            &[NoRepairs, TablesReady, Approved, Soaked, StandbysCaughtUp, NoDependents]
        }
        (Phase::Switch, Phase::Ramp) => &[Complete(Side::Old), OldSideRepaired, Relaxed, StandbysCaughtUp],
        // A build that does not declare the migration may run in `off`.
        (Phase::Expand, Phase::Off) => &[Relaxed],
        _ => &[],
    }
}

/// What every step requires.
const EVERY_STEP: [Requirement; 2] = [Requirement::PreviousEpochDrained, Requirement::PhaseSupported];

/// Everything that the step from `from` to its neighbour `to` requires.
pub fn requirements(from: Phase, to: Phase) -> impl Iterator<Item = Requirement> {
    EVERY_STEP.into_iter().chain(specific(from, to).iter().copied())
}

/// Every reason against the step from the observed phase to its neighbour `to`.
pub fn blockers(observed: &Observed, to: Phase) -> Vec<Blocker> {
    requirements(observed.phase, to).flat_map(|requirement| requirement.blockers(observed, to)).collect()
}

impl Requirement {
    /// Every reason why this does not hold for a step to `to`; empty if it holds, or if only the move or the drop itself
    /// can tell.
    pub fn blockers(self, observed: &Observed, to: Phase) -> Vec<Blocker> {
        let conditions = &observed.conditions;
        let unless = |holds: bool, blocker: Blocker| if holds { Vec::new() } else { vec![blocker] };
        match self {
            Requirement::PreviousEpochDrained => undrained(observed),
            Requirement::PhaseSupported => unsupported(observed, to),
            Requirement::NewSideExists => unless(conditions.expanded, Blocker::NotExpanded),
            Requirement::Complete(side) => unless(observed.complete.of(side), Blocker::Incomplete(side)),
            Requirement::NoUnmirroredExternalWrites => {
                let left = conditions.quiet_period_left;
                unless(left.is_zero(), Blocker::ExternalWrites(left))
            }
            Requirement::NoRepairs => {
                let (rows, given_up) = (conditions.unrepaired, conditions.given_up);
                unless(rows == 0, Blocker::Unrepaired { rows, given_up })
            }
            Requirement::OldSideRepaired => {
                let rows = conditions.unrepaired_old;
                unless(rows == 0, Blocker::Unrepaired { rows, given_up: conditions.given_up.min(rows) })
            }
            Requirement::CleanScan => unless(conditions.scanned, Blocker::NotScanned),
            Requirement::Reversible => unless(conditions.reversible, Blocker::NotReversible),
            Requirement::Enforced => unless(conditions.enforced, Blocker::NotEnforced),
            Requirement::Relaxed => unless(conditions.relaxed, Blocker::NotRelaxed),
            Requirement::StandbysCaughtUp => {
                observed.lagging_standbys.iter().cloned().map(Blocker::Standby).collect()
            }
            Requirement::Approved => unless(conditions.approved, Blocker::NotApproved),
            Requirement::Soaked => {
                let left = conditions.soak_left;
                unless(left.is_zero(), Blocker::Soaking(left))
            }
            Requirement::TablesReady => observed.table_problems.iter().cloned().map(Blocker::Table).collect(),
            Requirement::NoOpenExternalTransaction | Requirement::NoDependents => Vec::new(),
        }
    }
}

fn undrained(observed: &Observed) -> Vec<Blocker> {
    match observed.previous {
        PreviousEpoch::Drained => Vec::new(),
        PreviousEpoch::Closed => vec![Blocker::EpochInUse(observed.epoch - 1)],
        PreviousEpoch::Open => {
            let late = unacknowledged(observed);
            if late.is_empty() { vec![Blocker::EpochInUse(observed.epoch - 1)] } else { late }
        }
    }
}

/// The instances whose acknowledgement the close of the previous epoch waits for.
pub(super) fn unacknowledged(observed: &Observed) -> Vec<Blocker> {
    if cfg!(cutover_break = "agree") {
        return Vec::new();
    }
    let epoch = observed.epoch;
    let late = observed.members.iter().filter(|member| member.acknowledged < epoch);
    late.map(|member| Blocker::Unacknowledged {
        instance: member.name.clone(),
        at: member.acknowledged,
        epoch,
        older_open: member.older_open,
    })
    .collect()
}

fn unsupported(observed: &Observed, to: Phase) -> Vec<Blocker> {
    let unable = observed.members.iter().filter(|member| !member.range.contains(to));
    unable
        .map(|member| Blocker::Unsupported { instance: member.name.clone(), range: member.range, to })
        .collect()
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Requirement::PreviousEpochDrained => "nothing runs at an earlier epoch",
            Requirement::PhaseSupported => "every live instance supports the phase",
            Requirement::NewSideExists => "the new side exists, with its guard trigger",
            Requirement::Complete(Side::Old) => "the old side is complete",
            Requirement::Complete(Side::New) => "the new side is complete",
            Requirement::NoUnmirroredExternalWrites => {
                "no external write that the guard trigger cannot mirror, or that the change forbids, for the quiet period"
            }
            Requirement::NoOpenExternalTransaction => "no external transaction is open",
            Requirement::NoRepairs => "no row waits for repair",
            Requirement::OldSideRepaired => "no row of the old side waits for repair",
            Requirement::CleanScan => "a scan of both sides since the last backfill found no difference",
            Requirement::Reversible => "a scan mapped every value from new to old and back",
            Requirement::Enforced => "the server refuses what the change forbids",
            Requirement::Relaxed => "the server no longer refuses what the change forbids",
            Requirement::StandbysCaughtUp => "every standby that serves reads has caught up",
            Requirement::Approved => "a person has approved the drop",
            Requirement::Soaked => "`retire` has lasted for the soak time",
            Requirement::TablesReady => "the tables are as the plan needs them",
            Requirement::NoDependents => "nothing else depends on the old side",
        })
    }
}
