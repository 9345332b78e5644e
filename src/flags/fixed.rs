//! Flags that code sets, for tests and for running without a server.

use arc_swap::ArcSwap;

use super::flag::Variant;
use super::names::{Name, NameMap};
use super::subject::Subject;

/// The state of a flag of [`Flags::fixed`](super::Flags::fixed), the same for every subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FixedFlag {
    enabled: bool,
    payload: Option<String>,
}

impl FixedFlag {
    /// On, without a payload.
    pub const ON: Self = Self { enabled: true, payload: None };

    /// Off.
    pub const OFF: Self = Self { enabled: false, payload: None };

    /// On, with a variant that has this payload.
    pub fn payload(payload: impl Into<String>) -> Self {
        Self { enabled: true, payload: Some(payload.into()) }
    }
}

impl From<bool> for FixedFlag {
    fn from(enabled: bool) -> Self {
        if enabled { Self::ON } else { Self::OFF }
    }
}

#[derive(Debug)]
pub(super) struct Fixed(ArcSwap<NameMap<FixedFlag>>);

impl Fixed {
    pub(super) fn new(flags: NameMap<FixedFlag>) -> Self {
        Self(ArcSwap::from_pointee(flags))
    }

    pub(super) fn set(&self, name: &str, flag: &FixedFlag) {
        self.0.rcu(|flags| {
            let mut flags = NameMap::clone(flags);
            flags.insert(name, flag.clone());
            flags
        });
    }

    pub(super) fn enabled(&self, name: &Name<'_>, _any: &Subject) -> Option<bool> {
        self.0.load().get(name).map(|flag| flag.enabled)
    }

    pub(super) fn variant(&self, name: &Name<'_>, _any: &Subject) -> Option<Variant> {
        self.0.load().get(name).map(|flag| Variant {
            enabled: flag.enabled,
            name: flag.payload.is_some().then(|| "fixed".to_owned()),
            payload: flag.payload.clone(),
            payload_kind: None,
        })
    }

    pub(super) fn lacks(&self, name: &Name<'_>) -> bool {
        self.0.load().get(name).is_none()
    }
}
