//! Flag decisions that are pinned to a request.

use std::fmt;
use std::future::Future;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::flag::{Flag, Variant};
use super::handle::Flags;
use super::names::Name;
use super::subject::Subject;

/// The flag decisions of one request. The first answer for a flag applies until the request ends, even if the flag
/// changes.
///
/// [`FlagsLayer`](super::FlagsLayer) makes one for each request. Handlers take it as an axum extractor, and other code
/// calls [`Decisions::current`]. Clones share their decisions, so a request can pass them to tasks that it spawns. A flag
/// is evaluated when it is first used, without a lock.
///
/// ```
/// use axum::{Router, routing::get};
/// use cutover::flags::{Decisions, FixedFlag, Flag, Flags, FlagsLayer};
///
/// const NEW_FLOW: Flag = Flag::new("payment-new-flow", false);
///
/// async fn pay(decisions: Decisions) -> &'static str {
///     decisions
///         .gate(&NEW_FLOW, async || "new", async || "legacy")
///         .await
/// }
///
/// let flags = Flags::fixed([("payment-new-flow", FixedFlag::ON)]);
/// let app: Router = Router::new().route("/pay", get(pay)).layer(FlagsLayer::new(flags));
/// ```
#[derive(Clone)]
pub struct Decisions(Arc<Pinned>);

struct Pinned {
    flags: Flags,
    subject: Subject,
    first: Segment,
}

/// Answers in order of first use. A linear search is enough, because a request uses few flags.
#[derive(Default)]
struct Segment {
    slots: [OnceLock<(Name<'static>, Answer)>; 4],
    next: OnceLock<Box<Segment>>,
}

enum Answer {
    Enabled(bool),
    Variant(Option<Box<Variant>>),
}

impl Decisions {
    /// Decisions about `subject`, for a unit of work that is not an HTTP request.
    pub fn new(flags: Flags, subject: Subject) -> Self {
        Self(Arc::new(Pinned { flags, subject, first: Segment::default() }))
    }

    /// Drops the subject and every answer. `false` if another clone uses them.
    pub(super) fn clear(&mut self) -> bool {
        let Some(pinned) = Arc::get_mut(&mut self.0) else { return false };
        pinned.subject = Subject::new();
        pinned.first = Segment::default();
        true
    }

    /// Cleared decisions, about another subject.
    pub(super) fn about(mut self, subject: Subject) -> Self {
        match Arc::get_mut(&mut self.0) {
            Some(pinned) => {
                pinned.subject = subject;
                self
            }
            // Nothing else uses cleared decisions.
            None => Self::new(self.0.flags.clone(), subject),
        }
    }

    /// Whether the flag is on for this request.
    pub fn decide(&self, flag: &Flag) -> bool {
        let decided =
            self.pin(&flag.name, |_| true, |_| Answer::Enabled(self.0.flags.decide(flag, &self.0.subject)));
        match decided {
            Answer::Enabled(enabled) => *enabled,
            Answer::Variant(Some(variant)) => variant.enabled,
            Answer::Variant(None) => flag.default,
        }
    }

    /// The flag's value for this request; see [`Flags::value`].
    pub fn value<T: FromStr + Clone>(&self, flag: &Flag<T>) -> T {
        self.0.flags.read(flag, self.variant_of(&flag.name))
    }

    /// The flag's answer for this request; see [`Flags::variant`].
    pub fn variant(&self, name: &'static str) -> Option<&Variant> {
        self.variant_of(&Name::new(name))
    }

    /// As [`decide`](Self::decide), for a source that may have to ask a server first: an OpenFeature provider that
    /// evaluates remotely. Other sources answer at once.
    ///
    /// This is the only way to let a request wait for a flag. It waits once, at most for `limit`; then the declared
    /// default applies. Later calls in the same request have the answer, including [`decide`](Self::decide) and an inner
    /// [`FlagRouterLayer`](super::FlagRouterLayer). For all routes:
    ///
    /// ```
    /// use std::time::Duration;
    /// use axum::{Router, extract::Request, middleware::{Next, from_fn}, response::Response};
    /// use cutover::flags::{Decisions, Flag, Flags, FlagsLayer};
    ///
    /// const NEW_FLOW: Flag = Flag::new("payment-new-flow", false);
    ///
    /// async fn ask_first(decisions: Decisions, request: Request, next: Next) -> Response {
    ///     decisions.resolve(&NEW_FLOW, Duration::from_millis(50)).await;
    ///     next.run(request).await
    /// }
    ///
    /// # let flags = Flags::fixed::<&str>([]);
    /// let app: Router = Router::new().layer(from_fn(ask_first)).layer(FlagsLayer::new(flags));
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Safe: when dropped, nothing is decided.
    pub async fn resolve(&self, flag: &Flag, limit: Duration) -> bool {
        if self.pinned(&flag.name).is_none() {
            let enabled = self.0.flags.resolve(flag, &self.0.subject, limit).await;
            self.pin(&flag.name, |_| true, |_| Answer::Enabled(enabled));
        }
        self.decide(flag)
    }

    /// As [`value`](Self::value), for a source that may have to ask a server first; see
    /// [`resolve`](Self::resolve).
    ///
    /// # Cancel safety
    ///
    /// Safe: when dropped, nothing is decided.
    pub async fn resolve_value<T: FromStr + Clone>(&self, flag: &Flag<T>, limit: Duration) -> T {
        if self.pinned(&flag.name).is_none() {
            let variant = self.0.flags.resolve_variant(&flag.name, &self.0.subject, limit).await;
            let variant = variant.map(Box::new);
            self.pin(&flag.name, |_| true, |_| Answer::Variant(variant.clone()));
        }
        self.value(flag)
    }

    /// Runs `new` if the flag is on for this request, otherwise `legacy`. Only the chosen one is called.
    ///
    /// # Cancel safety
    ///
    /// That of the chosen future.
    pub async fn gate<N, L>(
        &self,
        flag: &Flag,
        new: impl FnOnce() -> N,
        legacy: impl FnOnce() -> L,
    ) -> N::Output
    where
        N: Future,
        L: Future<Output = N::Output>,
    {
        if self.decide(flag) { new().await } else { legacy().await }
    }

    /// The subject of the decisions.
    pub fn subject(&self) -> &Subject {
        &self.0.subject
    }

    fn variant_of(&self, name: &Name<'static>) -> Option<&Variant> {
        let has_variant = |answer: &Answer| matches!(answer, Answer::Variant(_));
        let answer = self.pin(name, has_variant, |before| {
            Answer::Variant(match before {
                // `decide` came first: the variant must not contradict its answer.
                Some(Answer::Enabled(false)) => Some(Box::new(Variant::plain(false))),
                Some(Answer::Enabled(true)) => {
                    let now = self.0.flags.variant_of(name, &self.0.subject);
                    let now = now.filter(|variant| variant.enabled);
                    Some(Box::new(now.unwrap_or_else(|| Variant::plain(true))))
                }
                _ => self.0.flags.variant_of(name, &self.0.subject).map(Box::new),
            })
        });
        match answer {
            Answer::Variant(variant) => variant.as_deref(),
            Answer::Enabled(_) => None,
        }
    }

    /// The first answer for `name`, if there is one.
    fn pinned(&self, name: &Name<'static>) -> Option<&Answer> {
        let mut segment = Some(&self.0.first);
        while let Some(Segment { slots, next }) = segment {
            for slot in slots {
                match slot.get() {
                    Some((other, answer)) if other == name => return Some(answer),
                    Some(_) => {}
                    None => return None,
                }
            }
            segment = next.get().map(|next| &**next);
        }
        None
    }

    /// The first answer for `name` that `fits`, otherwise the result of `evaluate`, which gets the previous answer. If two
    /// threads evaluate at once, both use the result of the first to store it.
    fn pin(
        &self,
        name: &Name<'static>,
        fits: impl Fn(&Answer) -> bool,
        evaluate: impl Fn(Option<&Answer>) -> Answer,
    ) -> &Answer {
        let mut before = None;
        let mut segment = &self.0.first;
        loop {
            for slot in &segment.slots {
                let (other, answer) = slot.get_or_init(|| (*name, evaluate(before)));
                if other == name {
                    if fits(answer) {
                        return answer;
                    }
                    before = Some(answer);
                }
            }
            segment = segment.next.get_or_init(Box::default);
        }
    }
}

impl fmt::Debug for Decisions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decisions").field("subject", &self.0.subject).finish()
    }
}
