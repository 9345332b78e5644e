use std::fmt;
use std::ops::RangeInclusive;

use super::Phase;

/// The phases that a build supports.
///
/// A migration moves only to phases that every live build supports. A build that does not support a phase in use is not
/// admitted, so it never becomes ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PhaseRange {
    min: Phase,
    max: Phase,
}

impl PhaseRange {
    /// Every phase: a build with code for both sides.
    pub const FULL: PhaseRange = PhaseRange { min: Phase::Off, max: Phase::Contract };

    /// What a build that does not declare the migration supports: `off`.
    pub const UNAWARE: PhaseRange = PhaseRange { min: Phase::Off, max: Phase::Off };

    /// A range of phases; `None` if it is empty.
    pub fn new(range: RangeInclusive<Phase>) -> Option<Self> {
        let (min, max) = range.into_inner();
        (min <= max).then_some(Self { min, max })
    }

    /// From this phase to `contract`. A build without code for the old side supports
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

    /// Whether the build supports `phase`.
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
    fn an_empty_range_is_refused() {
        assert!(PhaseRange::new(Phase::Ramp..=Phase::Off).is_none());
        assert!(PhaseRange::new(Phase::Ramp..=Phase::Ramp).is_some());
    }
}
