//! The words of a migration and the rules about them: phases, which sides they touch, which moves are allowed.
//!
//! Everything here is a pure function of its arguments. The running code and the model check call the
//! same functions, so that what was proven is what runs.

mod decision;
mod desired;
mod line;
mod work;

pub use decision::{
    Blocker, Completeness, Conditions, LaggingStandby, Member, Observed, PreviousEpoch, Step,
    may_acknowledge, may_join, next_step,
};
pub(crate) use decision::{waits_for_repairs, waits_for_standbys};
pub use desired::{Desired, ParseDesiredError, Percent, Target};
pub use line::{ParsePhaseError, Phase, PhaseRange, ReadSource, Side};
pub use work::{SchemaState, Task, needed_work};
