//! What can be wrong with a declared flag, and with a flag that steers a fleet.

/// A declared flag that the source does not have as it should.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FlagProblem {
    /// The flag's name.
    pub flag: String,
    /// What is wrong with it.
    pub kind: FlagProblemKind,
}

/// What is wrong with a declared flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FlagProblemKind {
    /// The source does not have the flag: it was never created, is archived, or belongs to a project or environment that
    /// the token does not see. The declared default applies.
    Missing,
    /// The flag is marked as stale in the source, where it will soon be removed. Remove it from the code.
    Stale,
}

/// Why a [`Switch`](super::Switch) is unknown. `Display` says what is wrong; [`remedy`](Self::remedy) what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SwitchProblem {
    /// The source never answered, or its last answer is too old. Holds the error of the last request, if there is one.
    #[error("the flag server gave no usable answer recently{}", last_error(.0))]
    NotFresh(Option<String>),
    /// The source has no flag of this name.
    #[error(
        "the flag source has no flag of this name (never created, archived, or not visible to the token)"
    )]
    Missing,
    /// The flag can give different answers to different instances, or to one instance at different times.
    #[error("the flag can give more than one answer at the same time: {0}")]
    Ambiguous(String),
    /// The flag is on, but evaluates to off.
    #[error("the flag is on, but none of its strategies applies to the fleet")]
    NoStrategy,
    /// A client of the application decides. It does not tell whether a flag is off or missing, and whether other instances
    /// get the same answer.
    #[error("the application's own client decides, and does not tell whether the flag is off or missing")]
    OwnClient,
    /// The source has the flag but cannot evaluate it.
    #[error("the flag source cannot evaluate the flag")]
    Broken,
}

impl SwitchProblem {
    /// Its name in metrics.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::NotFresh(_) => "unreachable",
            Self::Missing => "missing",
            Self::Ambiguous(_) => "ambiguous",
            Self::NoStrategy => "no_strategy",
            Self::OwnClient => "own_client",
            Self::Broken => "broken",
        }
    }

    /// What a person can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NotFresh(_) => "make the flag server reachable with this URL and token",
            Self::Missing => "create the flag or restore it from the archive",
            Self::Ambiguous(_) => "give the flag one strategy with a rollout of 100 % and one variant",
            Self::NoStrategy => {
                "give the flag one strategy with a rollout of 100 % and no constraints, and turn its parent flags on"
            }
            Self::OwnClient => {
                "set UNLEASH_URL instead of `Cutover::flags`, or declare the migration without a flag"
            }
            Self::Broken => "give the flag one variant with a weight of 100 %",
        }
    }
}

fn last_error(error: &Option<String>) -> String {
    error.as_ref().map(|error| format!(" (last error: {error})")).unwrap_or_default()
}
