//! The decisions of the request that the current thread works on.

use std::cell::RefCell;
use std::mem::{replace, swap};
use std::sync::Arc;

use http::Extensions;

use super::decisions::Decisions;
use super::spare::Spare;
use super::subject::Subject;

thread_local! {
    static CURRENT: RefCell<Scope> = const { RefCell::new(Scope::None) };
}

/// The decisions of a request in a [`FlagsLayer`](super::FlagsLayer).
///
/// They are made when they are first asked for. Most requests of most services decide nothing, and pay only for the
/// possibility.
pub(super) enum Scope {
    /// There are none here: outside of a layer, or the request has those of an outer one.
    None,
    Unused {
        spare: Arc<Spare>,
        subject: Subject,
    },
    Used {
        spare: Arc<Spare>,
        decisions: Decisions,
    },
}

impl Scope {
    pub(super) fn new(spare: &Arc<Spare>, subject: Subject) -> Self {
        Self::Unused { spare: Arc::clone(spare), subject }
    }

    pub(super) fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// The decisions, which are made now if they were not before.
    pub(super) fn decisions(&mut self) -> Option<Decisions> {
        if let Self::Unused { .. } = self
            && let Self::Unused { spare, subject } = replace(self, Self::None)
        {
            let decisions = spare.take(subject);
            *self = Self::Used { spare, decisions };
        }
        match self {
            Self::Used { decisions, .. } => Some(decisions.clone()),
            _ => None,
        }
    }

    /// Keeps the decisions for a later request.
    pub(super) fn end(&mut self) {
        if let Self::Used { spare, decisions } = replace(self, Self::None) {
            spare.keep(decisions);
        }
    }
}

impl Decisions {
    /// The decisions of the request that the calling code answers.
    ///
    /// A [`FlagsLayer`](super::FlagsLayer) sets them while the service inside it runs, in the same task. A task that the
    /// request spawns has none: pass it a clone.
    ///
    /// ```
    /// use cutover::flags::{Decisions, Flag};
    ///
    /// const NEW_FLOW: Flag = Flag::new("payment-new-flow", false);
    ///
    /// fn is_new_flow() -> bool {
    ///     Decisions::current().is_some_and(|decisions| decisions.decide(&NEW_FLOW))
    /// }
    /// ```
    pub fn current() -> Option<Self> {
        current()
    }

    /// The decisions of a request: those in its extensions, otherwise the current ones.
    pub(super) fn of(extensions: &Extensions) -> Option<Self> {
        extensions.get().cloned().or_else(current)
    }
}

/// The decisions that the innermost [`Entered`] on this thread has set.
fn current() -> Option<Decisions> {
    // A thread that is exiting has no thread-local storage any more.
    CURRENT.try_with(|current| current.borrow_mut().decisions()).unwrap_or_default()
}

/// Whether there are current decisions.
#[inline]
pub(super) fn is_set() -> bool {
    CURRENT.try_with(|current| !current.borrow().is_none()).unwrap_or_default()
}

/// These decisions are the current ones until this is dropped. Then they are back in their place.
///
/// The code between is not a closure, because a closure copies the request that it captures.
pub(super) struct Entered<'a>(&'a mut Scope);

impl<'a> Entered<'a> {
    #[inline]
    pub(super) fn new(scope: &'a mut Scope) -> Self {
        exchange(scope);
        Self(scope)
    }
}

impl Drop for Entered<'_> {
    #[inline]
    fn drop(&mut self) {
        exchange(self.0);
    }
}

#[inline]
fn exchange(scope: &mut Scope) {
    let _ = CURRENT.try_with(|current| swap(&mut *current.borrow_mut(), scope));
}
