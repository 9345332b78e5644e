use std::fmt;

use serde::{Deserialize, Serialize};

/// Something about the tables that a plan does not allow for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PlanProblem {
    /// What is wrong, with the names and values.
    pub problem: String,
    /// What to do about it: a statement that can be run, or a setting of the plan.
    pub remedy: String,
    /// Whether `expand` refuses to start. Otherwise the problem is a warning.
    pub is_blocking: bool,
    /// Whether the library solves it before `ramp`, because the plan says `carry_over()`.
    pub by_library: bool,
}

impl PlanProblem {
    pub(crate) fn blocking(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { problem: problem.into(), remedy: remedy.into(), is_blocking: true, by_library: false }
    }

    pub(crate) fn warning(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { problem: problem.into(), remedy: remedy.into(), is_blocking: false, by_library: false }
    }
}

impl fmt::Display for PlanProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; to fix: {}", self.problem, self.remedy)
    }
}
