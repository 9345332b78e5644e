use std::fmt;
use std::str::FromStr;

/// Which sides of a migration are written and read.
///
/// The eight phases form a line. A migration moves along it one step at a time, forwards or backwards, and at any time the
/// instances work at no more than two adjacent phases.
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
/// `ramp` and `switch` are separate because a single step from split reads to "the old side is no longer written" would let
/// one instance read the old side after another has stopped writing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Phase {
    /// The service uses only the old side.
    Off,
    /// Both sides are written. The new side lacks older rows.
    Expand,
    /// Existing rows are copied to the new side.
    Backfill,
    /// Both sides are compared.
    Verify,
    /// A percentage of keys is read from the new side.
    Ramp,
    /// Every read goes to the new side. The old side is still written.
    Switch,
    /// The old side is no longer written.
    Retire,
    /// The old side is dropped. There is no way back.
    Contract,
}

/// One of the two places of the migrated data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// Where the data lived before the migration.
    Old,
    /// Where the migration moves it.
    New,
}

/// Where a phase reads from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadSource {
    /// Every key from this side.
    From(Side),
    /// A share of the keys from the new side, the rest from the old one.
    Split,
}

impl Phase {
    /// All phases, in order.
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
    #[inline]
    pub const fn writes(self, side: Side) -> bool {
        match side {
            Side::Old => (self as u8) < Phase::Retire as u8,
            Side::New => (self as u8) > Phase::Off as u8,
        }
    }

    /// Where this phase reads from.
    #[inline]
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

    /// The side whose result a write returns: the side that the phase reads, or the old side while reads are split.
    pub const fn answers(self) -> Side {
        if self.may_read(Side::Old) { Side::Old } else { Side::New }
    }

    /// The next phase on the way to `target`; `None` if it is reached or cannot be reached.
    ///
    /// There is no step out of [`Phase::Contract`].
    pub fn towards(self, target: Phase) -> Option<Phase> {
        match self.cmp(&target) {
            std::cmp::Ordering::Less => Self::from_index(self as u8 + 1),
            std::cmp::Ordering::Greater if self != Phase::Contract => Self::from_index(self as u8 - 1),
            _ => None,
        }
    }

    /// The phase at this position in the line, from 0.
    #[inline]
    pub fn from_index(index: u8) -> Option<Phase> {
        Self::ALL.get(usize::from(index)).copied()
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A text that is not the name of a phase.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_writes_every_side_that_its_neighbours_read() {
        // This is why two adjacent phases can be in use at once.
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
    fn steps_go_one_phase_at_a_time_and_not_out_of_contract() {
        assert_eq!(Phase::Off.towards(Phase::Contract), Some(Phase::Expand));
        assert_eq!(Phase::Switch.towards(Phase::Verify), Some(Phase::Ramp));
        assert_eq!(Phase::Ramp.towards(Phase::Ramp), None);
        assert_eq!(Phase::Contract.towards(Phase::Off), None);
    }
}
