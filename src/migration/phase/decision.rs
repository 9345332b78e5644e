use std::fmt;
use std::time::Duration;

use super::{Phase, PhaseRange, Side};

/// Which sides hold every row's current value.
///
/// A side may be read only while it is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Completeness {
    /// The old side holds every row's current value.
    pub old: bool,
    /// The new side holds every row's current value.
    pub new: bool,
}

impl Completeness {
    /// At the start only the old side has the data.
    pub const INITIAL: Completeness = Completeness { old: true, new: false };

    /// What is still complete once `phase` has been entered: a side that is not written has gaps at once. And whoever goes
    /// back to `expand` and forward again wants another copy, by a mapping that has been mended for example.
    pub fn on_entering(self, phase: Phase) -> Completeness {
        Completeness {
            old: self.old && phase.writes(Side::Old),
            new: self.new && phase.writes(Side::New) && phase != Phase::Expand,
        }
    }

    /// Whether every side that `phase` may read is complete.
    pub fn allows_reads_of(self, phase: Phase) -> bool {
        (self.old || !phase.may_read(Side::Old)) && (self.new || !phase.may_read(Side::New))
    }
}

/// An instance as the ledger knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The name to show to a person.
    pub name: String,
    /// The phases its build can run.
    pub range: PhaseRange,
    /// The epoch below which nothing of it is running any more; 0 when it has said nothing yet.
    pub acknowledged: i32,
}

/// The epoch before the current one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PreviousEpoch {
    /// Operations may still begin and commit at it.
    Open,
    /// No operation can begin at it, but a transaction that passed the fence earlier may still run.
    Closed,
    /// Nothing at it runs or ever will again.
    Drained,
}

/// What is known about the data besides its completeness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Conditions {
    /// The schema that the expand phase needs is there.
    pub expanded: bool,
    /// A whole scan found no difference, and it is newer than the last backfill.
    pub scanned: bool,
    /// The mapping back from new to old was tried on the data and lost nothing.
    pub reversible: bool,
    /// A person approved that the old side is dropped.
    pub approved: bool,
    /// How much longer no stranger may write whose writes can't be copied on the spot.
    pub quiet_period_left: Duration,
    /// How much longer `retire` has to last before the old side may be dropped.
    pub soak_left: Duration,
    /// Rows whose sides are known to differ, because one of them could not be written.
    pub unrepaired: i64,
    /// How many of these are not tried again before a person asks for it.
    pub given_up: i64,
}

/// Everything that decides about a migration's next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The current epoch.
    pub epoch: i32,
    /// Its phase.
    pub phase: Phase,
    /// The epoch before it.
    pub previous: PreviousEpoch,
    /// Every instance that is alive and admitted.
    pub members: Vec<Member>,
    /// Which sides are complete.
    pub complete: Completeness,
    /// What else is known about the data.
    pub conditions: Conditions,
    /// Standbys that are read from and have not replayed all copies and the end of the epoch before.
    pub lagging_standbys: Vec<LaggingStandby>,
}

/// A standby that lags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaggingStandby {
    /// Its `application_name`.
    pub standby: String,
    /// Bytes that it has yet to replay; `None` when that can't be seen.
    pub bytes: Option<i64>,
}

/// A reason why a migration stays where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blocker {
    /// An instance still has, or may have, operations at an older epoch.
    Unacknowledged {
        /// Who.
        instance: String,
        /// What it acknowledged last.
        at: i32,
    },
    /// A build can't run the phase.
    OutOfRange {
        /// Who.
        instance: String,
        /// What it can run.
        range: PhaseRange,
        /// What it would have to run.
        to: Phase,
    },
    /// The schema lacks the new side.
    NotExpanded,
    /// The side that would be read has gaps.
    Incomplete(Side),
    /// No clean scan since the last backfill.
    NotScanned,
    /// Rows are behind on the side that would be read.
    Unrepaired {
        /// How many.
        rows: i64,
        /// How many of them are not tried again before a person asks for it.
        given_up: i64,
    },
    /// Nothing shows that the old side can be rebuilt from the new one.
    NoWayBack,
    /// Somebody writes past the library, and what he writes can't be copied on the spot.
    Strangers(Duration),
    /// A standby that is read from does not have it all yet.
    StandbyBehind(LaggingStandby),
    /// Nobody approved the drop of the old side.
    NotApproved,
    /// `retire` has not lasted long enough.
    Soaking(Duration),
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Blocker::Unacknowledged { instance, at: 0 } => {
                write!(f, "instance {instance} has acknowledged no epoch yet")
            }
            Blocker::Unacknowledged { instance, at } => write!(f, "instance {instance} at epoch {at}"),
            Blocker::OutOfRange { instance, range, to } if *range == PhaseRange::UNAWARE => {
                write!(f, "instance {instance} runs a build that can't leave `off` for `{to}`")
            }
            Blocker::OutOfRange { instance, range, to } => {
                write!(f, "instance {instance} runs a build for {range}, which lacks `{to}`")
            }
            Blocker::NotExpanded => f.write_str("the schema lacks the new side: the expand DDL has not run"),
            Blocker::Incomplete(Side::New) => f.write_str("the new side has gaps until the backfill ends"),
            Blocker::Incomplete(Side::Old) => {
                f.write_str("the old side has gaps until the reverse backfill ends")
            }
            Blocker::NotScanned => f.write_str("no clean scan of both sides since the last backfill"),
            Blocker::Unrepaired { rows, given_up } => {
                let s = if *rows == 1 { "" } else { "s" };
                write!(f, "{rows} row{s} behind on the new side (see `cutover repairs`)")?;
                if *given_up > 0 { write!(f, ", {given_up} of them given up") } else { Ok(()) }
            }
            Blocker::NoWayBack => {
                f.write_str("the mapping from new back to old has not been proven on the data")
            }
            Blocker::Strangers(left) => write!(
                f,
                "somebody writes past the library (see `cutover strangers`): nobody may for another {} s",
                left.as_secs().max(1)
            ),
            Blocker::StandbyBehind(LaggingStandby { standby, bytes: Some(bytes) }) => {
                write!(f, "standby {standby} has yet to replay {} kB", (bytes >> 10).max(1))
            }
            Blocker::StandbyBehind(LaggingStandby { standby, bytes: None }) => write!(
                f,
                "standby {standby} is not connected, or this role may not see how far it is (`grant pg_monitor`)"
            ),
            Blocker::NotApproved => f.write_str("nobody has approved the drop of the old side"),
            Blocker::Soaking(left) => {
                write!(f, "`retire` has to soak for another {} s", left.as_secs().max(1))
            }
        }
    }
}

/// What the driver does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The desired phase is reached and only the current epoch is in use.
    Idle,
    /// Make every epoch below the current one unusable.
    Close,
    /// Wait until no transaction of the closed epoch is left.
    Drain,
    /// Open the next epoch with this phase.
    Move(Phase),
    /// Wait, for all of these reasons.
    Wait(Vec<Blocker>),
}

/// Decides the next step of a migration towards `target`.
///
/// At most two neighbouring epochs are ever in use: a move needs the previous epoch drained, and closing it
/// needs every member's acknowledgement of the current one. The shape is that of Google's F1 schema changes
/// (Rae et al., "Online, Asynchronous Schema Change in F1", VLDB 2013).
pub fn next_step(view: &Observed, target: Phase) -> Step {
    match view.previous {
        PreviousEpoch::Open => {
            let late = unacknowledged(view);
            if late.is_empty() { Step::Close } else { Step::Wait(late) }
        }
        PreviousEpoch::Closed => Step::Drain,
        PreviousEpoch::Drained => match view.phase.towards(target) {
            None => Step::Idle,
            Some(to) => {
                let reasons = gates(view, to);
                if reasons.is_empty() { Step::Move(to) } else { Step::Wait(reasons) }
            }
        },
    }
}

fn unacknowledged(view: &Observed) -> Vec<Blocker> {
    if cfg!(cutover_break = "agree") {
        return Vec::new();
    }
    view.members
        .iter()
        .filter(|member| member.acknowledged < view.epoch)
        .map(|member| Blocker::Unacknowledged { instance: member.name.clone(), at: member.acknowledged })
        .collect()
}

/// Every reason against entering `to` from the view's phase.
fn gates(view: &Observed, to: Phase) -> Vec<Blocker> {
    let mut reasons: Vec<Blocker> = view
        .members
        .iter()
        .filter(|member| !member.range.contains(to))
        .map(|member| Blocker::OutOfRange { instance: member.name.clone(), range: member.range, to })
        .collect();
    for side in [Side::Old, Side::New] {
        let complete = if side == Side::Old { view.complete.old } else { view.complete.new };
        // `verify` reads only the old side but compares it with a new one that must be whole.
        let needed = to.may_read(side) || (to == Phase::Verify && side == Side::New);
        if needed && !complete {
            reasons.push(Blocker::Incomplete(side));
        }
    }
    if waits_for_standbys(view.phase, to) {
        reasons.extend(view.lagging_standbys.iter().cloned().map(Blocker::StandbyBehind));
    }
    let conditions = view.conditions;
    if waits_for_repairs(view.phase, to)
        && let Conditions { unrepaired: rows @ 1.., given_up, .. } = conditions
    {
        reasons.push(Blocker::Unrepaired { rows, given_up });
    }
    match (view.phase, to) {
        (Phase::Off, Phase::Expand) if !conditions.expanded => reasons.push(Blocker::NotExpanded),
        (Phase::Backfill | Phase::Verify, Phase::Verify | Phase::Ramp)
            if !conditions.quiet_period_left.is_zero() =>
        {
            reasons.push(Blocker::Strangers(conditions.quiet_period_left));
        }
        (Phase::Verify, Phase::Ramp) if !conditions.scanned => reasons.push(Blocker::NotScanned),
        (Phase::Ramp, Phase::Switch) if !conditions.reversible => reasons.push(Blocker::NoWayBack),
        (Phase::Retire, Phase::Contract) => {
            if !conditions.approved {
                reasons.push(Blocker::NotApproved);
            }
            if !conditions.soak_left.is_zero() {
                reasons.push(Blocker::Soaking(conditions.soak_left));
            }
        }
        _ => {}
    }
    reasons
}

/// Whether standbys that are read from have to be that far: on one that lags a side is not old but empty, or still read
/// when it is dropped.
pub(crate) fn waits_for_standbys(from: Phase, to: Phase) -> bool {
    matches!((from, to), (Phase::Verify | Phase::Switch, Phase::Ramp) | (Phase::Retire, Phase::Contract))
}

/// Whether no row may be behind: it must arrive while the side that has it is still written.
pub(crate) fn waits_for_repairs(from: Phase, to: Phase) -> bool {
    matches!(
        (from, to),
        (Phase::Verify, Phase::Ramp) | (Phase::Switch, Phase::Retire) | (Phase::Retire, Phase::Contract)
    )
}

/// Whether an instance with `older` operations still running at older epochs may acknowledge.
pub fn may_acknowledge(older: u64) -> bool {
    older == 0
}

/// Whether a build may join while epochs of these phases are in use.
pub fn may_join(range: PhaseRange, in_use: impl IntoIterator<Item = Phase>) -> bool {
    in_use.into_iter().all(|phase| range.contains(phase))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(phase: Phase) -> Observed {
        Observed {
            epoch: 7,
            phase,
            previous: PreviousEpoch::Drained,
            members: vec![Member { name: "a".into(), range: PhaseRange::FULL, acknowledged: 7 }],
            complete: Completeness { old: true, new: true },
            conditions: Conditions {
                expanded: true,
                scanned: true,
                reversible: true,
                approved: true,
                quiet_period_left: Duration::ZERO,
                soak_left: Duration::ZERO,
                unrepaired: 0,
                given_up: 0,
            },
            lagging_standbys: Vec::new(),
        }
    }

    #[test]
    fn nothing_moves_while_two_epochs_are_in_use() {
        for phase in Phase::ALL {
            for target in Phase::ALL {
                for previous in [PreviousEpoch::Open, PreviousEpoch::Closed] {
                    let step = next_step(&Observed { previous, ..view(phase) }, target);
                    assert!(!matches!(step, Step::Move(_)), "{phase} → {target}: {step:?}");
                }
            }
        }
    }

    #[test]
    fn one_late_member_holds_the_close() {
        let mut view = Observed { previous: PreviousEpoch::Open, ..view(Phase::Ramp) };
        view.members.push(Member { name: "b".into(), range: PhaseRange::FULL, acknowledged: 6 });
        assert_eq!(
            next_step(&view, Phase::Switch),
            Step::Wait(vec![Blocker::Unacknowledged { instance: "b".into(), at: 6 }])
        );
    }

    #[test]
    fn every_gate_holds_its_own_step() {
        type Spoil = fn(&mut Observed);
        let behind: Spoil =
            |v| v.lagging_standbys.push(LaggingStandby { standby: "reader".into(), bytes: None });
        let gates: [(Phase, Phase, Spoil); 17] = [
            (Phase::Switch, Phase::Retire, |v| v.conditions.unrepaired = 1),
            (Phase::Retire, Phase::Contract, |v| v.conditions.unrepaired = 1),
            (Phase::Verify, Phase::Ramp, behind),
            (Phase::Switch, Phase::Ramp, behind),
            (Phase::Retire, Phase::Contract, behind),
            (Phase::Backfill, Phase::Verify, |v| v.conditions.quiet_period_left = Duration::from_secs(9)),
            (Phase::Verify, Phase::Ramp, |v| v.conditions.quiet_period_left = Duration::from_secs(9)),
            (Phase::Off, Phase::Expand, |v| v.conditions.expanded = false),
            (Phase::Backfill, Phase::Verify, |v| v.complete.new = false),
            (Phase::Verify, Phase::Ramp, |v| v.complete.new = false),
            (Phase::Verify, Phase::Ramp, |v| v.conditions.scanned = false),
            (Phase::Verify, Phase::Ramp, |v| v.conditions.unrepaired = 1),
            (Phase::Ramp, Phase::Switch, |v| v.conditions.reversible = false),
            (Phase::Switch, Phase::Ramp, |v| v.complete.old = false),
            (Phase::Retire, Phase::Contract, |v| v.conditions.approved = false),
            (Phase::Retire, Phase::Contract, |v| v.conditions.soak_left = Duration::from_secs(9)),
            (Phase::Off, Phase::Expand, |v| v.members[0].range = PhaseRange::UNAWARE),
        ];
        for (from, to, spoil) in gates {
            assert_eq!(next_step(&view(from), to), Step::Move(to), "{from} → {to}");
            let mut spoilt = view(from);
            spoil(&mut spoilt);
            assert!(matches!(next_step(&spoilt, to), Step::Wait(_)), "{from} → {to}");
        }
    }

    #[test]
    fn the_way_from_retire_back_to_switch_is_always_open() {
        let mut view = view(Phase::Retire);
        view.complete.old = false;
        view.conditions = Conditions {
            expanded: false,
            scanned: false,
            reversible: false,
            approved: false,
            quiet_period_left: Duration::ZERO,
            soak_left: Duration::from_secs(1),
            unrepaired: 1,
            given_up: 1,
        };
        assert_eq!(next_step(&view, Phase::Off), Step::Move(Phase::Switch));
    }

    #[test]
    fn an_unwritten_side_is_incomplete_at_once() {
        let whole = Completeness { old: true, new: true };
        assert_eq!(whole.on_entering(Phase::Retire), Completeness { old: false, new: true });
        assert_eq!(whole.on_entering(Phase::Off), Completeness { old: true, new: false });
        assert_eq!(whole.on_entering(Phase::Expand), Completeness { old: true, new: false });
        for phase in [Phase::Backfill, Phase::Verify, Phase::Ramp, Phase::Switch] {
            assert_eq!(whole.on_entering(phase), whole);
        }
    }
}
