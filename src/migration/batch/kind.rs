use crate::migration::phase::{Phase, Side};

/// What a pass does with the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PassKind {
    /// Copies the old side to the new one.
    Forward,
    /// Copies the new side to the old one.
    Back,
    /// Compares both sides, and tries the way back.
    Compare,
}

impl PassKind {
    /// The name in the ledger and in metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            PassKind::Forward => "backfill",
            PassKind::Back => "reverse_backfill",
            PassKind::Compare => "scan",
        }
    }

    /// The phases in which the pass runs.
    pub(crate) fn phases(self) -> &'static [Phase] {
        match self {
            PassKind::Forward => &[Phase::Backfill],
            PassKind::Back => &[Phase::Switch],
            PassKind::Compare => &[Phase::Verify, Phase::Ramp],
        }
    }

    /// The side that is complete when the pass has finished.
    pub(crate) fn completes(self) -> Option<Side> {
        match self {
            PassKind::Forward => Some(Side::New),
            PassKind::Back => Some(Side::Old),
            PassKind::Compare => None,
        }
    }
}
