use super::{Observed, Phase, PreviousEpoch};

/// Work on the schema or the data that a phase needs before the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Task {
    /// Make the new side exist. Runs in `off`, before `expand`.
    Expand,
    /// Make the new side complete. Runs in `backfill`.
    Backfill,
    /// Mend the rows whose new side could not be written. Runs in `verify`, before the scan.
    Repair,
    /// Make the old side complete again. Runs in `switch`, after a return from `retire`.
    ReverseBackfill,
    /// Compare all of both sides. Runs in `verify`, and in `ramp` on the way to `switch` after a reverse backfill.
    Scan,
    /// Drop the old side. Runs in `contract`.
    Contract,
}

impl Task {
    /// Its name: `expand`, `backfill`, `repair`, `reverse_backfill`, `scan` or `contract`.
    pub fn name(self) -> &'static str {
        match self {
            Task::Expand => "expand",
            Task::Backfill => "backfill",
            Task::Repair => "repair",
            Task::ReverseBackfill => "reverse_backfill",
            Task::Scan => "scan",
            Task::Contract => "contract",
        }
    }
}

/// What a look at the schema says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchemaState {
    /// The new side exists.
    pub expanded: bool,
    /// The old side is gone.
    pub contracted: bool,
}

/// The work that has to be done before a migration can go on towards `target`.
pub fn needed_work(view: &Observed, facts: SchemaState, target: Phase) -> Option<Task> {
    if view.previous != PreviousEpoch::Drained {
        // Some instance may still work by other rules.
        return None;
    }
    match view.phase {
        Phase::Off if target != Phase::Off && !facts.expanded => Some(Task::Expand),
        Phase::Backfill if !view.complete.new => Some(Task::Backfill),
        Phase::Verify if view.conditions.unrepaired > view.conditions.given_up => Some(Task::Repair),
        // While strangers write what can't be copied on the spot, a scan would be outdated at once.
        Phase::Verify if !view.conditions.scanned && view.conditions.quiet_period_left.is_zero() => {
            Some(Task::Scan)
        }
        // A reverse backfill has outdated the scan that was made on the way here.
        Phase::Ramp if target > Phase::Ramp && !view.conditions.reversible => Some(Task::Scan),
        Phase::Switch if !view.complete.old => Some(Task::ReverseBackfill),
        Phase::Contract if !facts.contracted => Some(Task::Contract),
        _ => None,
    }
}
