//! The handle on the flags.

use std::{fmt, future::Future, str::FromStr, sync::Arc, time::Duration};

use tokio::sync::watch;

use super::counters::Families;
use super::counters::Tally;
use super::error::FlagsError;
use super::fixed::Fixed;
use super::fixed::FixedFlag;
use super::flag::Flag;
use super::flag::Switch;
use super::flag::Variant;
use super::names::Name;
use super::source::FlagProblem;
use super::source::Source;
use super::subject::Subject;
#[cfg(feature = "unleash")]
use super::unleash::{Poller, UnleashOptions};
use crate::release::Release;

/// How often a source that does not tell is asked whether it is ready.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The flags of a service: a cheap handle, cloned into whoever decides.
///
/// Deciding is synchronous, asks no server, takes no lock and allocates nothing beyond what the
/// source does (Unleash's engine: two strings for a rollout). It never fails: without anything
/// known the default of the [`Flag`] counts, with the server away the last known state.
///
/// Within a request ask its [`Decisions`](super::Decisions) instead, which stay the same until it
/// ends.
///
/// ```
/// use cutover::flags::{FixedFlag, Flag, Flags, Subject};
///
/// const NEW_FLOW: Flag = Flag::new("payment-new-flow", false);
///
/// let flags = Flags::fixed([("payment-new-flow", FixedFlag::OFF)]);
/// assert!(!flags.decide(&NEW_FLOW, &Subject::new()));
/// flags.set("payment-new-flow", FixedFlag::ON)?;
/// assert!(flags.decide(&NEW_FLOW, &Subject::new()));
/// # Ok::<(), cutover::flags::FlagsError>(())
/// ```
#[derive(Clone)]
pub struct Flags(Arc<Inner>);

struct Inner {
    source: Source,
    tally: Arc<Tally>,
    revision: watch::Sender<u64>,
    #[cfg(feature = "unleash")]
    poller: Option<Poller>,
}

impl Flags {
    /// Flags that say the same to everybody, for tests and for running without a server;
    /// [`set`](Self::set) changes them.
    pub fn fixed<N: AsRef<str>>(flags: impl IntoIterator<Item = (N, FixedFlag)>) -> Self {
        Self(Arc::new(Inner {
            source: Source::Fixed(Fixed::new(flags.into_iter().collect())),
            tally: Arc::default(),
            revision: watch::Sender::new(0),
            #[cfg(feature = "unleash")]
            poller: None,
        }))
    }

    /// Flags from an Unleash server, polled in the background from now on.
    ///
    /// Returns at once, whether or not the server is there; [`ready`](Self::ready) waits for it.
    /// Polling ends with [`close`](Self::close), or when the last clone is dropped.
    ///
    /// # Errors
    ///
    /// [`FlagsError::Options`] with everything that is wrong with the options, and
    /// [`FlagsError::NoRuntime`] outside of a Tokio runtime.
    #[cfg(feature = "unleash")]
    pub fn unleash(options: UnleashOptions) -> Result<Self, FlagsError> {
        let revision = watch::Sender::new(0);
        let tally = Arc::default();
        let (unleash, poller) = Poller::start(options, revision.clone(), Arc::clone(&tally))?;
        Ok(Self(Arc::new(Inner { source: Source::Unleash(unleash), tally, revision, poller: Some(poller) })))
    }

    /// Flags from the provider of an OpenFeature client: LaunchDarkly's, flagd's, or any other.
    ///
    /// The client stays the application's: its hooks and contexts count, and so does the provider
    /// that it is given later. A subject's user, or else its session, is the targeting key; user,
    /// session, address and properties are fields.
    ///
    /// - Evaluation in OpenFeature may wait, a decision may not. It is taken from the first poll of
    ///   the evaluation, which is enough for providers that evaluate in the process. Where one has
    ///   to ask a server, or fails, the declared default counts and is counted;
    ///   [`Decisions::resolve`](super::Decisions::resolve) waits for such a provider, once per
    ///   request.
    /// - It costs about twice what the client costs: some allocations and read locks of its own at the first
    ///   look, nothing at the second. `make bench ARGS=flags` shows it.
    /// - [`is_ready`](Self::is_ready) and [`is_fresh`](Self::is_fresh) ask the provider for a flag
    ///   that does not exist. [`changed`](Self::changed) never moves, because providers tell nobody.
    ///   A flag that the provider does not know is [`Switch::Unknown`] and not off.
    /// - Stickiness, the last known state and the counts of its server are the provider's affair.
    ///
    /// ```
    /// use cutover::flags::{Flag, Flags, Subject};
    /// use open_feature::OpenFeature;
    ///
    /// # async fn start(provider: open_feature::provider::NoOpProvider) {
    /// let mut api = OpenFeature::singleton_mut().await;
    /// api.set_provider(provider).await;
    /// let flags = Flags::openfeature(api.create_client());
    /// # }
    /// ```
    #[cfg(feature = "openfeature")]
    pub fn openfeature(client: open_feature::Client) -> Self {
        Self(Arc::new(Inner {
            source: Source::OpenFeature(super::openfeature::OpenFeature::new(client)),
            tally: Arc::default(),
            revision: watch::Sender::new(0),
            #[cfg(feature = "unleash")]
            poller: None,
        }))
    }

    /// Registers what this room counts: `cutover_flag_decisions_total{flag,enabled,version}`,
    /// `cutover_flag_defaults_total{flag,version}` (the default in the code had to do), and for a
    /// server `cutover_flag_fetches_total{result}`, `cutover_flag_backups_total{result}` and
    /// `cutover_flags_last_success_timestamp_seconds`. The version is the release's, so that a
    /// canary's decisions can be told from the stable version's.
    ///
    /// # Errors
    ///
    /// [`FlagsError::Metrics`] when the registry already has such families.
    pub fn register(&self, registry: &prometheus::Registry, release: &Release) -> Result<(), FlagsError> {
        let families = Families::new(self.0.tally.clone(), self.fetches(), release.version())?;
        Ok(registry.register(Box::new(families))?)
    }

    fn fetches(&self) -> Option<Arc<super::counters::Fetches>> {
        match &self.0.source {
            #[cfg(feature = "unleash")]
            Source::Unleash(unleash) => Some(unleash.freshness.fetches.clone()),
            _ => None,
        }
    }

    /// Whether the flag is on for this subject, now.
    pub fn decide(&self, flag: &Flag, subject: &Subject) -> bool {
        let known = self.0.source.enabled(&flag.name, subject);
        let enabled = known.unwrap_or(flag.default);
        self.0.tally.decided(&flag.name, known.is_some(), enabled);
        enabled
    }

    /// The flag's value for this subject, now: the payload of its variant if the flag is on and the
    /// payload can be read as `T`, else the declared default.
    pub fn value<T: FromStr + Clone>(&self, flag: &Flag<T>, subject: &Subject) -> T {
        self.read(flag, self.variant_of(&flag.name, subject).as_ref())
    }

    /// What the flag says to this subject, now; `None` when the source was never reached or does
    /// not have the flag.
    ///
    /// `name` is a constant of the code, because it becomes the label of a metric.
    pub fn variant(&self, name: &'static str, subject: &Subject) -> Option<Variant> {
        self.variant_of(&Name::new(name), subject)
    }

    /// The state of a flag that steers the whole fleet rather than a request.
    ///
    /// All instances get the same answer: it is asked for one made-up subject whose user and
    /// session are the flag's name. Roll such a flag out to 100 % all the same; a strategy with
    /// random stickiness is random here too.
    pub fn switch(&self, name: &str) -> Switch {
        self.0.source.switch(name)
    }

    /// Runs `new` if the flag is on for this subject, else `legacy`. Only the chosen one is called.
    ///
    /// Cancel safety: that of the chosen future.
    pub async fn gate<N, L>(
        &self,
        flag: &Flag,
        subject: &Subject,
        new: impl FnOnce() -> N,
        legacy: impl FnOnce() -> L,
    ) -> N::Output
    where
        N: Future,
        L: Future<Output = N::Output>,
    {
        if self.decide(flag, subject) { new().await } else { legacy().await }
    }

    /// Changes a flag made by [`fixed`](Self::fixed), or adds it.
    ///
    /// # Errors
    ///
    /// [`FlagsError::NotFixed`] when a server owns the flags.
    pub fn set(&self, name: &str, flag: FixedFlag) -> Result<(), FlagsError> {
        match &self.0.source {
            Source::Fixed(fixed) => fixed.set(name, &flag),
            #[cfg(any(feature = "unleash", feature = "openfeature"))]
            _ => return Err(FlagsError::NotFixed),
        }
        self.0.revision.send_modify(|revision| *revision += 1);
        Ok(())
    }

    /// A number that grows whenever the flags change, to wait on.
    ///
    /// It does not move when the server becomes unreachable: whoever minds asks
    /// [`is_fresh`](Self::is_fresh) or [`switch`](Self::switch) from time to time as well.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.revision.subscribe()
    }

    /// Whether any state is there: from the server, or kept from before.
    pub fn is_ready(&self) -> bool {
        self.0.source.is_loaded()
    }

    /// Waits until [`is_ready`](Self::is_ready). Put a time limit around it: a server that is away
    /// is no reason not to start, since defaults are there.
    ///
    /// Cancel safety: safe, it only waits.
    pub async fn ready(&self) {
        let mut changed = self.changed();
        while !self.is_ready() {
            // A provider of OpenFeature tells nobody.
            let _ = tokio::time::timeout(LOOK_AGAIN, changed.changed()).await;
        }
    }

    /// Whether the source answered recently enough; always true for [`fixed`](Self::fixed).
    pub fn is_fresh(&self) -> bool {
        self.0.source.is_fresh()
    }

    /// Declared flags that the source lacks or that are stale there; empty before
    /// [`is_ready`](Self::is_ready), because then nothing can be said.
    pub fn coverage<'a>(&self, declared: impl IntoIterator<Item = &'a str>) -> Vec<FlagProblem> {
        let lacking = |flag: &'a str| {
            let kind = self.0.source.problem(&Name::new(flag))?;
            let flag = flag.to_owned();
            Some(FlagProblem { flag, kind })
        };
        declared.into_iter().filter_map(lacking).collect()
    }

    /// The state in use as the server sent it, for [`UnleashOptions::bootstrap`] of an instance to
    /// come; `None` when there is none, and for [`fixed`](Self::fixed). It names no user except
    /// those that strategies name.
    #[cfg(feature = "unleash")]
    pub fn snapshot(&self) -> Option<bytes::Bytes> {
        match &self.0.source {
            Source::Unleash(unleash) => unleash.body(),
            _ => None,
        }
    }

    /// Stops polling and sends the server what was counted since the last time. Takes at most twice
    /// the source's time limit (a report may be on its way); decisions go on with the last state.
    ///
    /// Cancel safety: when dropped, polling still ends, but counts may be lost. A second call
    /// does nothing.
    pub async fn close(&self) {
        #[cfg(feature = "unleash")]
        if let Some(poller) = &self.0.poller {
            poller.close().await;
        }
    }

    pub(super) fn variant_of(&self, name: &Name<'static>, subject: &Subject) -> Option<Variant> {
        let variant = self.0.source.variant(name, subject);
        self.0.tally.chosen(name, variant.as_ref());
        variant
    }

    pub(super) async fn resolve(&self, flag: &Flag, subject: &Subject, limit: Duration) -> bool {
        let known = tokio::time::timeout(limit, self.0.source.resolve(&flag.name, subject)).await;
        let known = known.unwrap_or_default();
        let enabled = known.unwrap_or(flag.default);
        self.0.tally.decided(&flag.name, known.is_some(), enabled);
        enabled
    }

    pub(super) async fn resolve_variant(
        &self,
        name: &Name<'static>,
        subject: &Subject,
        limit: Duration,
    ) -> Option<Variant> {
        let variant = tokio::time::timeout(limit, self.0.source.resolve_variant(name, subject)).await;
        let variant = variant.unwrap_or_default();
        self.0.tally.chosen(name, variant.as_ref());
        variant
    }

    pub(super) fn read<T: FromStr + Clone>(&self, flag: &Flag<T>, variant: Option<&Variant>) -> T {
        let payload =
            variant.filter(|variant| variant.enabled).and_then(|variant| variant.payload.as_deref());
        let Some(payload) = payload else {
            return flag.default.clone();
        };
        payload.parse().unwrap_or_else(|_| {
            self.0.tally.defaulted(&flag.name);
            flag.default.clone()
        })
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = match &self.0.source {
            Source::Fixed(_) => "fixed",
            #[cfg(feature = "unleash")]
            Source::Unleash(_) => "unleash",
            #[cfg(feature = "openfeature")]
            Source::OpenFeature(_) => "openfeature",
        };
        f.debug_struct("Flags")
            .field("source", &source)
            .field("ready", &self.is_ready())
            .field("fresh", &self.is_fresh())
            .finish()
    }
}
