//! Where decisions come from: one function per question, whatever the source.

#[cfg(feature = "unleash")]
use std::sync::Arc;

use super::fixed::Fixed;
use super::flag::Switch;
use super::flag::Variant;
use super::names::Name;
#[cfg(feature = "openfeature")]
use super::openfeature::OpenFeature;
use super::subject::Subject;
#[cfg(feature = "unleash")]
use super::unleash::Unleash;

pub(super) enum Source {
    Fixed(Fixed),
    #[cfg(feature = "unleash")]
    Unleash(Arc<Unleash>),
    #[cfg(feature = "openfeature")]
    OpenFeature(OpenFeature),
}

/// A declared flag that the source does not have as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// The source does not have it: never created, archived, or of another project or environment
    /// than the token's. Its declared default counts.
    Missing,
    /// Its owners marked it as stale: it is about to be removed there, so remove it from the code.
    Stale,
}

impl Source {
    /// `None`: the source can't say, so the declared default counts.
    pub(super) fn enabled(&self, name: &Name<'_>, subject: &Subject) -> Option<bool> {
        match self {
            Self::Fixed(fixed) => fixed.enabled(name, subject),
            #[cfg(feature = "unleash")]
            Self::Unleash(unleash) => unleash.enabled(name, subject),
            #[cfg(feature = "openfeature")]
            Self::OpenFeature(open) => open.enabled(name, subject),
        }
    }

    /// `None`: the source can't say.
    pub(super) fn variant(&self, name: &Name<'_>, subject: &Subject) -> Option<Variant> {
        match self {
            Self::Fixed(fixed) => fixed.variant(name, subject),
            #[cfg(feature = "unleash")]
            Self::Unleash(unleash) => unleash.variant(name, subject),
            #[cfg(feature = "openfeature")]
            Self::OpenFeature(open) => open.variant(name, subject),
        }
    }

    /// As [`enabled`](Self::enabled), but waits where the source has to ask.
    pub(super) async fn resolve(&self, name: &Name<'_>, subject: &Subject) -> Option<bool> {
        match self {
            #[cfg(feature = "openfeature")]
            Self::OpenFeature(open) => open.resolve(name, subject).await,
            _ => self.enabled(name, subject),
        }
    }

    /// As [`variant`](Self::variant), but waits where the source has to ask.
    pub(super) async fn resolve_variant(&self, name: &Name<'_>, subject: &Subject) -> Option<Variant> {
        match self {
            #[cfg(feature = "openfeature")]
            Self::OpenFeature(open) => open.resolve_variant(name, subject).await,
            _ => self.variant(name, subject),
        }
    }

    pub(super) fn is_fresh(&self) -> bool {
        match self {
            Self::Fixed(_) => true,
            #[cfg(feature = "unleash")]
            Self::Unleash(unleash) => unleash.freshness.is_fresh(),
            #[cfg(feature = "openfeature")]
            Self::OpenFeature(open) => open.is_answering(),
        }
    }

    pub(super) fn is_loaded(&self) -> bool {
        match self {
            Self::Fixed(_) => true,
            #[cfg(feature = "unleash")]
            Self::Unleash(unleash) => unleash.is_loaded(),
            #[cfg(feature = "openfeature")]
            Self::OpenFeature(open) => open.is_answering(),
        }
    }

    pub(super) fn switch(&self, name: &str) -> Switch {
        // A subject of its own, so that the instances agree even on a flag that is rolled out to
        // some only.
        let subject = Subject::new().user(name).session(name);
        #[cfg(feature = "openfeature")]
        if let Self::OpenFeature(open) = self {
            return open.switch(name, &subject);
        }
        if !self.is_fresh() {
            return Switch::Unknown;
        }
        let name = Name::new(name);
        match self.variant(&name, &subject) {
            Some(variant) if variant.enabled => Switch::On(variant.payload),
            Some(_) => Switch::Off,
            None if matches!(self.problem(&name), Some(FlagProblemKind::Missing)) => Switch::Off,
            // It is there and can't be evaluated: no reason to turn a fleet back.
            None => Switch::Unknown,
        }
    }

    pub(super) fn problem(&self, name: &Name<'_>) -> Option<FlagProblemKind> {
        match self {
            Self::Fixed(fixed) => fixed.lacks(name).then_some(FlagProblemKind::Missing),
            #[cfg(feature = "unleash")]
            Self::Unleash(unleash) => unleash.problem(name),
            #[cfg(feature = "openfeature")]
            Self::OpenFeature(open) => open.problem(name),
        }
    }
}
