use crate::migration::phase::{Phase, Side};

/// What a pass does with the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sweep {
    /// Makes the new side what the old one says.
    Forward,
    /// Makes the old side what the new one says.
    Back,
    /// Compares them, and tries the way back.
    Compare,
}

impl Sweep {
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Sweep::Forward => "backfill",
            Sweep::Back => "reverse_backfill",
            Sweep::Compare => "scan",
        }
    }

    /// The phases that it belongs to.
    pub(crate) fn phases(self) -> &'static [Phase] {
        match self {
            Sweep::Forward => &[Phase::Backfill],
            Sweep::Back => &[Phase::Switch],
            Sweep::Compare => &[Phase::Verify, Phase::Ramp],
        }
    }

    /// The side that is complete when it has come to its end.
    pub(crate) fn completes(self) -> Option<Side> {
        match self {
            Sweep::Forward => Some(Side::New),
            Sweep::Back => Some(Side::Old),
            Sweep::Compare => None,
        }
    }
}
