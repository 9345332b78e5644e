//! Phases, and the rules about moves from one to the next.
//!
//! Everything here is a pure function of its arguments: no I/O and no clock. The library and the model check call the same
//! functions, so the model checks the rules that run.

mod blocker;
mod decision;
mod desired;
mod observed;
mod phases;
mod range;
mod requirement;
mod task;

pub use blocker::Blocker;
pub(crate) use blocker::time_left;
pub use decision::{Step, may_acknowledge, may_join, next_step};
pub use desired::{Desired, ParseDesiredError, Percent, Target};
pub use observed::{
    Completeness, Conditions, LaggingStandby, Member, Observed, OlderOpen, PreviousEpoch, TableProblem,
};
pub use phases::{ParsePhaseError, Phase, ReadSource, Side};
pub use range::PhaseRange;
pub use requirement::{Requirement, blockers, requirements};
pub use task::{SchemaState, Task, needed_work};
