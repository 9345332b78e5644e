use crate::migration::phase::{Phase, Side};

/// What a pass does with the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PassKind {
    /// Makes the new side what the old one says.
    Forward,
    /// Makes the old side what the new one says.
    Back,
    /// Compares them, and tries the way back.
    Compare,
}

impl PassKind {
    pub(crate) fn kind(self) -> &'static str {
        match self {
            PassKind::Forward => "backfill",
            PassKind::Back => "reverse_backfill",
            PassKind::Compare => "scan",
        }
    }

    /// The phases that it belongs to.
    pub(crate) fn phases(self) -> &'static [Phase] {
        match self {
            PassKind::Forward => &[Phase::Backfill],
            PassKind::Back => &[Phase::Switch],
            PassKind::Compare => &[Phase::Verify, Phase::Ramp],
        }
    }

    /// The side that is complete when it has come to its end.
    pub(crate) fn completes(self) -> Option<Side> {
        match self {
            PassKind::Forward => Some(Side::New),
            PassKind::Back => Some(Side::Old),
            PassKind::Compare => None,
        }
    }
}
