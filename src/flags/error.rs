//! What can go wrong when flags are set up. A decision never fails.

use std::fmt;

/// Why [`Flags`](super::Flags) could not be set up, or not be changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FlagsError {
    /// Options that can't work; all of them, not only the first.
    #[error("flag options: {}", list(.0))]
    Options(Vec<OptionProblem>),
    /// Polling needs a Tokio runtime, and there is none on this thread.
    #[error("flags from a server are polled in the background: call this inside a Tokio runtime")]
    NoRuntime,
    /// [`Flags::set`](super::Flags::set) on flags that a server owns.
    #[error("only flags made by `Flags::fixed` can be set from code: change this one on its server")]
    NotFixed,
    /// The metric families could not be registered.
    #[error("metrics of the flags: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// One option that can't work, and what would.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionProblem {
    /// Name of the option's field.
    pub field: &'static str,
    /// What is wrong and what would be right.
    pub text: String,
}

impl fmt::Display for OptionProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {}", self.field, self.text)
    }
}

fn list(problems: &[OptionProblem]) -> String {
    let texts: Vec<_> = problems.iter().map(ToString::to_string).collect();
    texts.join("; ")
}
