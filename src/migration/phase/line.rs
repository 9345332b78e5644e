use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// Which sides of a migration are written and read.
///
/// The eight phases form a line. A migration moves along it one step at a time, in both directions, and
/// every instance works at one of at most two neighbouring phases.
///
/// | phase | writes | reads |
/// |---|---|---|
/// | `off` | old | old |
/// | `expand` | old and new | old |
/// | `backfill` | old and new | old |
/// | `verify` | old and new | old |
/// | `ramp` | old and new | old or new, by percentage |
/// | `switch` | old and new | new |
/// | `retire` | new | new |
/// | `contract` | new | new; the old side is dropped |
///
/// `ramp` and `switch` are separate on purpose. A single step from split reads to "old is no longer
/// written" lets one instance still read the old side while another has stopped writing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Phase {
    /// Only the old side exists as far as the service is concerned.
    Off,
    /// Both sides are written; the new one has gaps.
    Expand,
    /// Existing rows are copied to the new side.
    Backfill,
    /// Both sides are compared.
    Verify,
    /// A percentage of keys is read from the new side.
    Ramp,
    /// Everything is read from the new side; the old one is still kept current.
    Switch,
    /// The old side is no longer written.
    Retire,
    /// The old side is dropped. There is no way back.
    Contract,
}

/// One of the two places where the migrated data lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// Where the data lived before the migration.
    Old,
    /// Where it is going.
    New,
}

/// Where a phase reads from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadSource {
    /// Every key from this side.
    From(Side),
    /// Some keys from the new side, the rest from the old one.
    Split,
}

impl Phase {
    /// All phases in their order.
    pub const ALL: [Phase; 8] = [
        Phase::Off,
        Phase::Expand,
        Phase::Backfill,
        Phase::Verify,
        Phase::Ramp,
        Phase::Switch,
        Phase::Retire,
        Phase::Contract,
    ];

    /// The name used in the ledger, in flags and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Phase::Off => "off",
            Phase::Expand => "expand",
            Phase::Backfill => "backfill",
            Phase::Verify => "verify",
            Phase::Ramp => "ramp",
            Phase::Switch => "switch",
            Phase::Retire => "retire",
            Phase::Contract => "contract",
        }
    }

    /// Whether this phase writes `side`.
    pub const fn writes(self, side: Side) -> bool {
        match side {
            Side::Old => (self as u8) < Phase::Retire as u8,
            Side::New => (self as u8) > Phase::Off as u8,
        }
    }

    /// Where this phase reads from.
    pub const fn reads(self) -> ReadSource {
        match self {
            Phase::Off | Phase::Expand | Phase::Backfill | Phase::Verify => ReadSource::From(Side::Old),
            Phase::Ramp => ReadSource::Split,
            Phase::Switch | Phase::Retire | Phase::Contract => ReadSource::From(Side::New),
        }
    }

    /// Whether this phase reads `side` for at least some keys.
    pub const fn may_read(self, side: Side) -> bool {
        match self.reads() {
            ReadSource::From(Side::Old) => matches!(side, Side::Old),
            ReadSource::From(Side::New) => matches!(side, Side::New),
            ReadSource::Split => true,
        }
    }

    /// The side whose answer a write gives back: the one that every read of the phase comes from; while reads are
    /// split, the old one.
    pub const fn answers(self) -> Side {
        if self.may_read(Side::Old) { Side::Old } else { Side::New }
    }

    /// The neighbouring phase on the way to `target`, or `None` when it is reached or can't be reached.
    ///
    /// There is no step out of [`Phase::Contract`].
    pub fn towards(self, target: Phase) -> Option<Phase> {
        match self.cmp(&target) {
            std::cmp::Ordering::Less => Self::from_index(self as u8 + 1),
            std::cmp::Ordering::Greater if self != Phase::Contract => Self::from_index(self as u8 - 1),
            _ => None,
        }
    }

    /// The phase at this place in the line, counted from zero.
    pub fn from_index(index: u8) -> Option<Phase> {
        Self::ALL.get(usize::from(index)).copied()
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A text that names no phase.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a phase: use off, expand, backfill, verify, ramp, switch, retire or contract")]
pub struct ParsePhaseError(String);

impl FromStr for Phase {
    type Err = ParsePhaseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|phase| phase.name() == text)
            .ok_or_else(|| ParsePhaseError(text.chars().take(40).collect()))
    }
}

/// The phases that a build can run.
///
/// The ledger moves only within the ranges of all live instances, and a build whose range lacks the
/// current phase never becomes ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PhaseRange {
    min: Phase,
    max: Phase,
}

impl PhaseRange {
    /// Every phase: a build that has code for both sides.
    pub const FULL: PhaseRange = PhaseRange { min: Phase::Off, max: Phase::Contract };

    /// What a build that has never heard of the migration can run.
    pub const UNAWARE: PhaseRange = PhaseRange { min: Phase::Off, max: Phase::Off };

    /// A range of phases; `None` when it is empty.
    pub fn new(range: RangeInclusive<Phase>) -> Option<Self> {
        let (min, max) = range.into_inner();
        (min <= max).then_some(Self { min, max })
    }

    /// From this phase to the end of the line: a build that has no code for the old side runs
    /// `PhaseRange::from_phase(Phase::Retire)`.
    pub const fn from_phase(min: Phase) -> Self {
        Self { min, max: Phase::Contract }
    }

    /// The first phase of the range.
    pub const fn min(self) -> Phase {
        self.min
    }

    /// The last phase of the range.
    pub const fn max(self) -> Phase {
        self.max
    }

    /// Whether the build can run `phase`.
    pub fn contains(self, phase: Phase) -> bool {
        self.min <= phase && phase <= self.max
    }
}

impl fmt::Display for PhaseRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..={}", self.min, self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_agree_on_at_least_one_side_that_both_write_and_may_read() {
        // What lets two neighbouring phases be in use at once: whatever one reads, the other writes.
        for pair in Phase::ALL.windows(2) {
            for (reader, writer) in [(pair[0], pair[1]), (pair[1], pair[0])] {
                for side in [Side::Old, Side::New] {
                    assert!(
                        !reader.may_read(side) || writer.writes(side),
                        "{reader} reads {side:?}, which {writer} does not write"
                    );
                }
            }
        }
    }

    #[test]
    fn a_phase_is_named_and_parsed_the_same() {
        for phase in Phase::ALL {
            assert_eq!(phase.name().parse(), Ok(phase));
        }
        assert!("Expand".parse::<Phase>().is_err());
        assert!("".parse::<Phase>().is_err());
    }

    #[test]
    fn steps_go_one_phase_at_a_time_and_never_out_of_contract() {
        assert_eq!(Phase::Off.towards(Phase::Contract), Some(Phase::Expand));
        assert_eq!(Phase::Switch.towards(Phase::Verify), Some(Phase::Ramp));
        assert_eq!(Phase::Ramp.towards(Phase::Ramp), None);
        assert_eq!(Phase::Contract.towards(Phase::Off), None);
    }

    #[test]
    fn an_empty_range_is_refused() {
        assert!(PhaseRange::new(Phase::Ramp..=Phase::Off).is_none());
        assert!(PhaseRange::new(Phase::Ramp..=Phase::Ramp).is_some());
    }
}
