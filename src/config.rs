mod address;
mod database_error;
mod known;
mod redact;
mod tls_error;

use std::borrow::Cow;
use std::fmt;

pub use address::postgres_options;
#[cfg(feature = "redis")]
pub(crate) use address::{AddressProblem, address_problem, without_scheme};
pub(crate) use database_error::{describe_error, describe_source, describe_without_values};
pub use known::remember;
#[cfg(feature = "redis")]
pub(crate) use known::remember_encoded;
pub(crate) use known::remember_password;
pub use redact::redact;
#[cfg(feature = "redis")]
pub(crate) use tls_error::{REDIS, with_tls_advice};
#[cfg(feature = "unleash")]
pub(crate) use tls_error::{UNLEASH, tls_advice};

/// One setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// The name of the field, builder method or environment variable.
    pub field: Cow<'static, str>,
    /// What is wrong, with the value, and what would be right.
    pub problem: String,
}

impl Problem {
    pub(crate) fn new(field: impl Into<Cow<'static, str>>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: redact(&problem.into()) }
    }
}

/// A configuration that cannot be used, with every problem in it.
///
/// Every module reports bad settings with this type, so that one start shows all of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub struct ConfigError {
    /// The problems, in the order of the fields.
    pub problems: Vec<Problem>,
}

impl ConfigError {
    /// `Ok` if there are no problems.
    pub(crate) fn check(problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(Self { problems }) }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.problem)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_in_the_message() {
        assert_eq!(ConfigError::check(Vec::new()), Ok(()));
        let problems =
            vec![Problem::new("fleet.lease", "0 s is too short"), Problem::new("LISTEN_ADDR", "no port")];
        let error = ConfigError::check(problems).expect_err("two problems");
        assert_eq!(error.to_string(), "fleet.lease: 0 s is too short; LISTEN_ADDR: no port");
    }
}
