use std::fmt;

/// Why a check was refused: every problem found, each naming the check and the setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthError {
    problems: Vec<String>,
}

impl HealthError {
    pub(super) fn check(problems: Vec<String>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(Self { problems }) }
    }

    pub(super) fn new(problems: Vec<String>) -> Self {
        Self { problems }
    }

    /// One sentence per problem.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }
}

impl fmt::Display for HealthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unusable health check: {}", self.problems.join("; "))
    }
}

impl std::error::Error for HealthError {}
