//! The decisions of the request that the current thread works on.

use std::cell::RefCell;
use std::mem::swap;

use super::decisions::Decisions;

thread_local! {
    static CURRENT: RefCell<Option<Decisions>> = const { RefCell::new(None) };
}

/// The decisions that the innermost [`within`] on this thread has set.
pub(super) fn current() -> Option<Decisions> {
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
