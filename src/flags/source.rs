//! Where decisions come from: one function per question for every kind of source.

#[cfg(feature = "unleash")]
use std::sync::Arc;

use super::error::FetchError;
use super::fixed::Fixed;
use super::flag::{Switch, Variant};
use super::names::Name;
#[cfg(feature = "openfeature")]
use super::openfeature::OpenFeature;
use super::problem::{FlagProblemKind, SwitchProblem};
use super::subject::Subject;
#[cfg(feature = "unleash")]
use super::unleash::{AppClient, Unleash};

pub(super) enum Source {
    Fixed(Fixed),
    #[cfg(feature = "unleash")]
    Unleash(Arc<Unleash>),
    /// A client that the application made.
    #[cfg(feature = "unleash")]
    Client(Arc<dyn AppClient>),
    #[cfg(feature = "openfeature")]
    OpenFeature(OpenFeature),
}

impl Source {
    /// `None` if the source has no answer; then the declared default applies. A client of the application applies the default
    /// to a missing flag by itself.
    #[cfg_attr(
        not(feature = "unleash"),
        expect(unused_variables, reason = "only a client takes the default")
    )]
    pub(super) fn enabled(&self, name: &Name<'_>, subject: &Subject, default: bool) -> Option<bool> {
        match self {
            Self::Fixed(fixed) => fixed.enabled(name, subject),
            #[cfg(feature = "unleash")]
            Self::Unleash(unleash) => unleash.enabled(name, subject),
            #[cfg(feature = "unleash")]
            Self::Client(client) => client.is_loaded().then(|| client.enabled(name, subject, default)),
            #[cfg(feature = "openfeature")]
            Self::OpenFeature(open) => open.enabled(name, subject),
        }
    }

    /// `None` if the source has no answer.
    pub(super) fn variant(&self, name: &Name<'_>, subject: &Subject) -> Option<Variant> {
        match self {
            Self::Fixed(fixed) => fixed.variant(name, subject),
            #[cfg(feature = "unleash")]
            Self::Unleash(unleash) => unleash.variant(name, subject),
            #[cfg(feature = "unleash")]
            Self::Client(client) => client.is_loaded().then(|| client.variant(name, subject)),
            #[cfg(feature = "openfeature")]
            Self::OpenFeature(open) => open.variant(name, subject),
        }
    }

    /// As [`enabled`](Self::enabled), but waits if the source has to ask a server.
    pub(super) async fn resolve(&self, name: &Name<'_>, subject: &Subject, default: bool) -> Option<bool> {
        match self {
            #[cfg(feature = "openfeature")]
            Self::OpenFeature(open) => open.resolve(name, subject).await,
            _ => self.enabled(name, subject, default),
        }
    }

    /// As [`variant`](Self::variant), but waits if the source has to ask a server.
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
            #[cfg(feature = "unleash")]
            Self::Client(client) => client.is_loaded(),
            #[cfg(feature = "openfeature")]
            Self::OpenFeature(open) => open.is_answering(),
        }
    }

    pub(super) fn last_fetch_error(&self) -> Option<FetchError> {
        match self {
            #[cfg(feature = "unleash")]
            Self::Unleash(unleash) => unleash.freshness.last_error(),
            _ => None,
        }
    }

    pub(super) fn is_loaded(&self) -> bool {
        match self {
            Self::Fixed(_) => true,
            #[cfg(feature = "unleash")]
            Self::Unleash(unleash) => unleash.is_loaded(),
            #[cfg(feature = "unleash")]
            Self::Client(client) => client.is_loaded(),
            #[cfg(feature = "openfeature")]
            Self::OpenFeature(open) => open.is_answering(),
        }
    }

    pub(super) fn switch(&self, name: &str) -> Switch {
        // A constant subject, so that all instances get the same answer.
        let subject = Subject::new().user(name).session(name);
        #[cfg(feature = "openfeature")]
        if let Self::OpenFeature(open) = self {
            return open.switch(name, &subject);
        }
        #[cfg(feature = "unleash")]
        if let Self::Client(_) = self {
            return Switch::Unknown(SwitchProblem::OwnClient);
        }
        if !self.is_fresh() {
            let error = self.last_fetch_error().map(|error| error.message);
            return Switch::Unknown(SwitchProblem::NotFresh(error));
        }
        let name = Name::new(name);
        let is_off = match self.is_off(&name) {
            Ok(is_off) => is_off,
            Err(problem) => return Switch::Unknown(problem),
        };
        let variant = match self {
            #[cfg(feature = "unleash")]
            Self::Unleash(unleash) => unleash.silent_variant(&name, &subject),
            _ => self.variant(&name, &subject),
        };
        match variant {
            _ if is_off => Switch::Off,
            Some(variant) if variant.enabled => Switch::On(variant.payload),
            Some(_) => Switch::Unknown(SwitchProblem::NoStrategy),
            None => Switch::Unknown(SwitchProblem::Broken),
        }
    }

    /// Whether a person turned the flag off; an error if it is missing or ambiguous.
    fn is_off(&self, name: &Name<'_>) -> Result<bool, SwitchProblem> {
        match self {
            #[cfg(feature = "unleash")]
            Self::Unleash(unleash) => unleash.is_off(name),
            _ => {
                let enabled = self.enabled(name, &Subject::new(), false).ok_or(SwitchProblem::Missing)?;
                Ok(!enabled)
            }
        }
    }

    pub(super) fn problem(&self, name: &Name<'_>) -> Option<FlagProblemKind> {
        match self {
            Self::Fixed(fixed) => fixed.lacks(name).then_some(FlagProblemKind::Missing),
            #[cfg(feature = "unleash")]
            Self::Unleash(unleash) => unleash.problem(name),
            #[cfg(feature = "unleash")]
            Self::Client(_) => None,
            #[cfg(feature = "openfeature")]
            Self::OpenFeature(open) => open.problem(name),
        }
    }
}
