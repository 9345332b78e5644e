use super::{Observed, Phase, PreviousEpoch};

/// Work on the schema or on rows that a phase needs before the next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Task {
    /// Create the new side. Runs in `off`, before `expand`.
    Expand,
    /// Copy rows until the new side is complete. Runs in `backfill`.
    Backfill,
    /// Repair the rows of which one side could not be written. Runs in `verify`, before the scan, and in `ramp` and
    /// `switch`, where an external write can leave such a row. In `retire` it only removes rows of the new side whose row of
    /// the old table is gone.
    Repair,
    /// Copy rows until the old side is complete again. Runs in `switch`, after a return from `retire`.
    ReverseBackfill,
    /// Compare all rows of both sides. Runs in `verify`, and again in `ramp` on the way to `switch` if a reverse backfill
    /// ended since.
    Scan,
    /// Give the new side what is attached to the old one. Runs in `verify`, after the scan, if the plan asks for it.
    CarryOver,
    /// Let the server refuse what the change forbids. Runs in `switch`, on the way to `retire`. Only changes of the schema
    /// alone have it.
    Enforce,
    /// Undo [`Task::Enforce`]. Runs in `switch` as soon as `retire` is not desired any more.
    Relax,
    /// Drop the old side. Runs in `contract`.
    Contract,
}

impl Task {
    /// The name: `expand`, `backfill`, `repair`, `reverse_backfill`, `scan`, `carry_over`,
    /// `enforce`, `relax` or `contract`.
    pub const fn name(self) -> &'static str {
        match self {
            Task::Expand => "expand",
            Task::Backfill => "backfill",
            Task::Repair => "repair",
            Task::ReverseBackfill => "reverse_backfill",
            Task::Scan => "scan",
            Task::CarryOver => "carry_over",
            Task::Enforce => "enforce",
            Task::Relax => "relax",
            Task::Contract => "contract",
        }
    }

    /// The task whose result the step from `from` to `to` requires. `contract` is the exception: its task runs right
    /// after the step.
    pub const fn of_step(from: Phase, to: Phase) -> Option<Task> {
        match (from, to) {
            (Phase::Off, Phase::Expand) => Some(Task::Expand),
            (Phase::Backfill, Phase::Verify) => Some(Task::Backfill),
            (Phase::Verify, Phase::Ramp) => Some(Task::Scan),
            (Phase::Switch, Phase::Ramp) => Some(Task::ReverseBackfill),
            (Phase::Switch, Phase::Retire) => Some(Task::Enforce),
            (Phase::Retire, Phase::Contract) => Some(Task::Contract),
            _ => None,
        }
    }
}

/// What the schema has of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SchemaState {
    /// The new side exists.
    pub expanded: bool,
    /// The old side is gone.
    pub contracted: bool,
    /// The server refuses everything that the change forbids.
    pub enforced: bool,
    /// The server refuses nothing of it.
    pub relaxed: bool,
}

impl SchemaState {
    /// The state of a change that has two sides and forbids nothing.
    pub const fn new(expanded: bool, contracted: bool) -> Self {
        Self { expanded, contracted, enforced: true, relaxed: true }
    }

    /// The same, with whether the server refuses everything that the change forbids, and whether it refuses nothing of it.
    /// A half-built state is neither.
    #[must_use]
    pub const fn with_refusals(self, enforced: bool, relaxed: bool) -> Self {
        Self { enforced, relaxed, ..self }
    }
}

/// The task to run now on the way to `target`.
pub fn needed_work(observed: &Observed, schema: SchemaState, target: Phase) -> Option<Task> {
    if observed.previous != PreviousEpoch::Drained {
        // Some instance may still work by the rules of the previous phase.
        return None;
    }
    let conditions = &observed.conditions;
    match observed.phase {
        // Also after a driver that was paused has enforced something in a phase that the fleet had left.
        phase if !schema.relaxed && (phase < Phase::Switch || phase == Phase::Switch && target <= phase) => {
            Some(Task::Relax)
        }
        Phase::Off if target != Phase::Off && !schema.expanded => Some(Task::Expand),
        Phase::Backfill if !observed.complete.new => Some(Task::Backfill),
        Phase::Switch if !observed.complete.old => Some(Task::ReverseBackfill),
        Phase::Verify | Phase::Ramp | Phase::Switch | Phase::Retire
            if conditions.unrepaired > conditions.given_up =>
        {
            Some(Task::Repair)
        }
        // An external write that cannot be copied outdates the scan.
        Phase::Verify if !conditions.scanned && conditions.quiet_period_left.is_zero() => Some(Task::Scan),
        Phase::Verify
            if target > Phase::Verify && observed.table_problems.iter().any(|problem| problem.by_library) =>
        {
            Some(Task::CarryOver)
        }
        // A reverse backfill outdates the scan of `verify`.
        Phase::Ramp if target > Phase::Ramp && !conditions.reversible => Some(Task::Scan),
        Phase::Switch if target > Phase::Switch && !schema.enforced => Some(Task::Enforce),
        Phase::Contract if !schema.contracted => Some(Task::Contract),
        _ => None,
    }
}
