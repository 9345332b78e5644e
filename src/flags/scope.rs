//! The decisions of the request that the current thread works on.

use std::cell::RefCell;
use std::mem::swap;

use http::Extensions;

use super::decisions::Decisions;

thread_local! {
    static CURRENT: RefCell<Option<Decisions>> = const { RefCell::new(None) };
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

/// The decisions that the innermost [`within`] on this thread has set.
fn current() -> Option<Decisions> {
    // A thread that is exiting has no thread-local storage any more.
    CURRENT.try_with(|current| current.borrow().clone()).unwrap_or_default()
}

/// Whether there are current decisions.
pub(super) fn is_set() -> bool {
    CURRENT.try_with(|current| current.borrow().is_some()).unwrap_or_default()
}

/// Runs code with these decisions as the current ones. They are back in their place afterwards, also if the code panics.
pub(super) fn within<T>(decisions: &mut Option<Decisions>, code: impl FnOnce() -> T) -> T {
    struct Swapped<'a>(&'a mut Option<Decisions>);

    impl Drop for Swapped<'_> {
        fn drop(&mut self) {
            swap_current(self.0);
        }
    }

    swap_current(decisions);
    let _swapped = Swapped(decisions);
    code()
}

fn swap_current(decisions: &mut Option<Decisions>) {
    let _ = CURRENT.try_with(|current| swap(&mut *current.borrow_mut(), decisions));
}
