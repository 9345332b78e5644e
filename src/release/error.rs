use std::fmt;

/// What is wrong with a release's identity: every problem found, not just the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseError {
    problems: Vec<String>,
}

impl ReleaseError {
    pub(super) fn check(problems: Vec<String>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(Self { problems }) }
    }

    /// One sentence per problem, each naming the field or the environment variable.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }
}

impl fmt::Display for ReleaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unusable release identity: {}", self.problems.join("; "))
    }
}

impl std::error::Error for ReleaseError {}
