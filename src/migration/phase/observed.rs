use std::time::Duration;

use super::{Phase, PhaseRange, Side};

/// Which sides hold the current value of every row.
///
/// A phase may read a side only while that side is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Completeness {
    /// The old side is complete.
    pub old: bool,
    /// The new side is complete.
    pub new: bool,
}

impl Completeness {
    /// A migration starts with the data on the old side only.
    pub const INITIAL: Completeness = Completeness { old: true, new: false };

    /// What is still complete after a move into `phase`.
    ///
    /// A side that the phase does not write becomes incomplete at once. A return to `expand` also makes the new side
    /// incomplete, so that the next backfill copies every row again, for example with a corrected mapping.
    pub fn on_entering(self, phase: Phase) -> Completeness {
        Completeness {
            old: self.old && phase.writes(Side::Old),
            new: self.new && phase.writes(Side::New) && phase != Phase::Expand,
        }
    }

    /// Whether this side is complete.
    pub fn of(self, side: Side) -> bool {
        match side {
            Side::Old => self.old,
            Side::New => self.new,
        }
    }

    /// Whether every side that `phase` may read is complete.
    pub fn allows_reads_of(self, phase: Phase) -> bool {
        [Side::Old, Side::New].into_iter().all(|side| self.of(side) || !phase.may_read(side))
    }
}

/// A live, admitted instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The instance's name, for messages.
    pub name: String,
    /// The phases that its build supports.
    pub range: PhaseRange,
    /// The epoch that it acknowledged last: none of its operations runs at an older one. 0: it has acknowledged none.
    pub acknowledged: i32,
    /// Its open operations at older epochs, if it has reported some.
    pub older_open: Option<OlderOpen>,
}

/// Open operations of an instance at older epochs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OlderOpen {
    /// How many.
    pub count: i32,
    /// For how many seconds the instance has waited for them.
    pub seconds: i64,
}

/// State of the epoch before the current one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PreviousEpoch {
    /// Operations may still begin and commit at it.
    Open,
    /// The fence refuses it, but a transaction that passed the fence earlier may still run.
    Closed,
    /// No operation runs at it, and none ever will. Also used if there is no previous epoch.
    Drained,
}

impl PreviousEpoch {
    /// From whether the ledger has it marked as drained, and as closed. The first epoch has none before it, and counts as
    /// drained.
    pub(crate) fn from_marks(drained: bool, closed: bool) -> Self {
        match (drained, closed) {
            (true, _) => Self::Drained,
            (false, true) => Self::Closed,
            (false, false) => Self::Open,
        }
    }
}

/// What a step can require besides completeness and agreement of the instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Conditions {
    /// The new side exists.
    pub expanded: bool,
    /// A scan of all rows found no difference, and no backfill ended after it began.
    pub scanned: bool,
    /// A scan mapped every value from new to old and back, and lost nothing.
    pub reversible: bool,
    /// A person approved the drop of the old side.
    pub approved: bool,
    /// The server refuses everything that the change forbids.
    pub enforced: bool,
    /// The server refuses nothing of what the change forbids.
    pub relaxed: bool,
    /// How much longer the table must go without an external write that the guard trigger cannot mirror.
    pub quiet_period_left: Duration,
    /// How much longer `retire` must last before the old side may be dropped.
    pub soak_left: Duration,
    /// Rows whose sides are known to differ, because one side could not be written.
    pub unrepaired: i64,
    /// How many of these are behind on the old side.
    pub unrepaired_old: i64,
    /// How many of these are given up: they are not tried again until a person asks for it.
    pub given_up: i64,
}

/// Something about the tables that has to be changed before the next step forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableProblem {
    /// What it is, with what to do.
    pub text: String,
    /// Whether the library does it, with [`Task::CarryOver`](super::Task::CarryOver).
    pub by_library: bool,
}

/// Everything that decides about the next step of a migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The current epoch.
    pub epoch: i32,
    /// The phase of the current epoch.
    pub phase: Phase,
    /// State of the epoch before it.
    pub previous: PreviousEpoch,
    /// Every live, admitted instance.
    pub members: Vec<Member>,
    /// Which sides are complete.
    pub complete: Completeness,
    /// What else a step can require.
    pub conditions: Conditions,
    /// Standbys that serve reads and have not replayed the end of the latest backfill, repair and epoch.
    pub lagging_standbys: Vec<LaggingStandby>,
    /// What has to be changed about the tables before the next step forward.
    pub table_problems: Vec<TableProblem>,
}

/// A standby that has not replayed enough WAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaggingStandby {
    /// Its `application_name`.
    pub standby: String,
    /// Bytes of WAL that it has yet to replay; `None` if that is not visible.
    pub bytes: Option<i64>,
}

#[cfg(test)]
mod tests {
    use super::*;

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
