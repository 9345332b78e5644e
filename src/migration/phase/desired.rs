use std::fmt;
use std::str::FromStr;

use super::{ParsePhaseError, Phase};

/// A share of keys in whole percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(u8);

impl Percent {
    /// All keys.
    pub const ALL: Percent = Percent(100);

    /// The share `percent`; `None` above 100.
    pub const fn new(percent: u8) -> Option<Self> {
        if percent <= 100 { Some(Self(percent)) } else { None }
    }

    /// The number, 0 to 100.
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// The phase that a person wants a migration to reach.
///
/// As text it is the name of the phase. `ramp` can carry the share of keys to read from the new side, as in `ramp:25`;
/// `ramp` alone means `ramp:100`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Desired {
    /// The phase.
    pub phase: Phase,
    /// The share of keys to read from the new side in [`Phase::Ramp`].
    pub ramp: Percent,
}

impl From<Phase> for Desired {
    fn from(phase: Phase) -> Self {
        Self { phase, ramp: Percent::ALL }
    }
}

impl fmt::Display for Desired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.phase {
            Phase::Ramp => write!(f, "ramp:{}", self.ramp.get()),
            phase => phase.fmt(f),
        }
    }
}

/// A text that is not a desired phase.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseDesiredError {
    /// There is no phase of this name.
    #[error(transparent)]
    Phase(#[from] ParsePhaseError),
    /// The percentage is not a whole number from 0 to 100, or it follows a phase other than `ramp`.
    #[error(
        "{0:?} is not a desired phase: only `ramp` takes a percentage, a whole number from 0 to 100, as in ramp:25"
    )]
    Percent(String),
}

impl FromStr for Desired {
    type Err = ParseDesiredError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some((name, percent)) = text.split_once(':') else {
            return Ok(text.parse::<Phase>()?.into());
        };
        match (name.parse()?, percent.parse().ok().and_then(Percent::new)) {
            (Phase::Ramp, Some(ramp)) => Ok(Self { phase: Phase::Ramp, ramp }),
            _ => Err(ParseDesiredError::Percent(text.chars().take(40).collect())),
        }
    }
}

/// What the source of the desired phase (the ledger or a flag) says at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A person asked for this phase.
    Desired(Desired),
    /// A person switched the migration off: reads return to the old side, and writes still go to both.
    SwitchedOff,
    /// Stay, for this reason: the source is unreachable, names no phase, or names one that does not exist.
    Hold(String),
}

impl Target {
    /// Parses a desired phase. A text that is not one becomes [`Target::Hold`] with the reason.
    pub fn from_text(text: &str) -> Target {
        match text.trim().parse() {
            Ok(desired) => Target::Desired(desired),
            Err(error) => Target::Hold(error.to_string()),
        }
    }

    /// The phase to move towards from `current`.
    ///
    /// Switched off means back to reading the old side, not to give the new side up: the target is [`Phase::Verify`], where
    /// both sides are still written, so that going forward again needs no backfill. To give the new side up, set the
    /// desired phase to `off`.
    pub fn phase_from(&self, current: Phase) -> Phase {
        match self {
            Target::Desired(desired) => desired.phase,
            Target::SwitchedOff => current.min(Phase::Verify),
            Target::Hold(_) => current,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentage_belongs_to_ramp_only() {
        assert_eq!("ramp:25".parse(), Ok(Desired { phase: Phase::Ramp, ramp: Percent(25) }));
        assert_eq!("ramp".parse(), Ok(Desired::from(Phase::Ramp)));
        for bad in ["ramp:101", "ramp:", "ramp:-1", "switch:5", "sideways", ""] {
            assert!(bad.parse::<Desired>().is_err(), "{bad}");
        }
    }

    #[test]
    fn switched_off_goes_back_to_reading_the_old_side() {
        assert_eq!(Target::SwitchedOff.phase_from(Phase::Retire), Phase::Verify);
        assert_eq!(Target::SwitchedOff.phase_from(Phase::Expand), Phase::Expand);
        assert_eq!(Target::Hold(String::new()).phase_from(Phase::Ramp), Phase::Ramp);
    }

    #[test]
    fn an_unknown_phase_holds_with_the_reason() {
        assert!(matches!(Target::from_text("forward!"), Target::Hold(reason) if reason.contains("forward!")));
    }
}
