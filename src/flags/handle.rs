//! The handle to the flags.

use std::{fmt, future::Future, str::FromStr, sync::Arc, time::Duration};

use tokio::sync::watch;
#[cfg(feature = "unleash")]
use unleash_api_client::client::{Client, FeatureKey};

use super::counters::{Families, Tally};
use super::error::{FetchError, FlagsError};
use super::fixed::{Fixed, FixedFlag};
use super::flag::{Flag, Switch, Variant};
use super::names::Name;
use super::problem::FlagProblem;
use super::source::Source;
use super::subject::Subject;
#[cfg(feature = "unleash")]
use super::unleash::{Poller, UnleashOptions, client_source};
use crate::release::Release;
use crate::scrape::Scraped;

/// How often a source that sends no notifications is asked whether it is ready.
const READY_POLL: Duration = Duration::from_millis(50);

/// The flags of a service: a handle that is cheap to clone.
///
/// A decision is synchronous, sends no request, takes no lock, and allocates only what the source allocates (Unleash's
/// engine: two strings for a rollout). It never fails: if nothing is known, the default of the [`Flag`] applies; if the
/// server is unreachable, the last known state.
///
/// Within a request use its [`Decisions`](super::Decisions) instead, which stay the same until the request ends.
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
    /// Flags with the same answer for every subject, for tests and for running without a server. [`set`](Self::set)
    /// changes them.
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
    /// Returns at once, even if the server is unreachable; [`ready`](Self::ready) waits for the first state. Polling ends
    /// with [`close`](Self::close), or when the last clone is dropped.
    ///
    /// # Errors
    ///
    /// [`FlagsError::Config`] with every unusable option, and [`FlagsError::NoRuntime`] outside of a Tokio runtime.
    #[cfg(feature = "unleash")]
    pub fn unleash(options: UnleashOptions) -> Result<Self, FlagsError> {
        let revision = watch::Sender::new(0);
        let tally = Arc::default();
        let (unleash, poller) = Poller::start(options, revision.clone(), Arc::clone(&tally))?;
        Ok(Self(Arc::new(Inner { source: Source::Unleash(unleash), tally, revision, poller: Some(poller) })))
    }

    /// Flags of an Unleash client that the application has already. That client decides, with its state, its custom strategies
    /// and its metrics. Prefer [`unleash`](Self::unleash), unless the application needs that client anyway: two clients poll
    /// the server twice.
    ///
    /// Compared with [`unleash`](Self::unleash):
    ///
    /// - A decision takes a lock that all threads share, and allocates the client's context. `make bench ARGS=flags` measures
    ///   both.
    /// - The client has no state before its first fetch. Then the declared defaults apply, although the client itself would
    ///   answer `false`. There is no last known state, and no instance polls for the fleet.
    /// - A missing flag has its declared default, but is not told from one that is off:
    ///   [`coverage`](Self::coverage) reports nothing, and [`switch`](Self::switch) is always
    ///   [`Switch::Unknown`], so such a flag cannot move a migration.
    /// - [`is_fresh`](Self::is_fresh) says only whether the client has a state. [`changed`](Self::changed) never changes.
    /// - The application starts and stops the client's polling. [`close`](Self::close) does nothing.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use cutover::flags::Flags;
    /// use cutover::flags::unleash_api_client::client::{Client, FeatureKey};
    ///
    /// # fn f<Features: FeatureKey>(client: Arc<Client<Features>>) -> Result<(), cutover::flags::FlagsError> {
    /// // Made with `ClientBuilder::enable_string_features`.
    /// let flags = Flags::from_client(client)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`FlagsError::Config`] for a client that was made without `enable_string_features`. The client can only tell by a panic,
    /// which is caught, so the panic hook prints a message.
    #[cfg(feature = "unleash")]
    pub fn from_client<F: FeatureKey>(client: Arc<Client<F>>) -> Result<Self, FlagsError> {
        let source = Source::Client(client_source(client)?);
        let (tally, revision) = (Arc::default(), watch::Sender::new(0));
        Ok(Self(Arc::new(Inner { source, tally, revision, poller: None })))
    }

    /// Flags from the provider of an OpenFeature client: LaunchDarkly, flagd, or any other.
    ///
    /// The application keeps its client: the client's hooks and contexts apply, and so does a provider that is set later.
    /// The targeting key is the subject's user, or its session if there is no user. User, session, address and properties
    /// are fields.
    ///
    /// - Evaluation in OpenFeature may wait, a decision may not. A decision uses the first poll of the evaluation, which
    ///   is enough for providers that evaluate in the process. If the provider has to ask a server, or fails, the
    ///   declared default applies and is counted. [`Decisions::resolve`](super::Decisions::resolve) waits for such a
    ///   provider, once per request.
    /// - A decision costs about twice as much as the client's evaluation: some allocations and read locks for the first
    ///   decision of a request, nothing for the next. `make bench ARGS=flags` measures it.
    /// - [`is_ready`](Self::is_ready) and [`is_fresh`](Self::is_fresh) ask the provider for a flag that does not exist.
    ///   [`changed`](Self::changed) never changes, because providers send no notifications.
    /// - Stickiness, the last known state and metrics of the server are up to the provider.
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

    /// Registers the metrics: `cutover_flag_decisions_total{flag,enabled,version}`,
    /// `cutover_flag_defaults_total{flag,version}` (the declared default applied), and for a server
    /// `cutover_flag_fetches_total{result}`, `cutover_flag_backups_total{result}` and
    /// `cutover_flags_last_success_timestamp_seconds`. The version is the release's, to distinguish the decisions of a
    /// canary from those of the stable version.
    ///
    /// # Errors
    ///
    /// [`FlagsError::Metrics`] if the registry already has such families.
    pub fn register(&self, registry: &prometheus::Registry, release: &Release) -> Result<(), FlagsError> {
        let families = Families::new(self.0.tally.clone(), self.fetches(), release.version())?;
        registry.register(Box::new(families))?;
        let mut scraped = Scraped::default();
        // The registry must not keep the polling alive.
        let inner = Arc::downgrade(&self.0);
        let help = "1 if the flag server answered recently, otherwise 0.";
        scraped.gauge("cutover_flags_fresh", help, &[], move |samples| {
            if let Some(inner) = inner.upgrade() {
                samples.flag(&[], inner.source.is_fresh());
            }
        })?;
        Ok(scraped.register(registry)?)
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
        let known = self.0.source.enabled(&flag.name, subject, flag.default);
        let enabled = known.unwrap_or(flag.default);
        self.0.tally.decided(&flag.name, known.is_some(), enabled);
        enabled
    }

    /// The flag's value for this subject, now: the payload of its variant if the flag is on and the payload can be parsed
    /// as `T`, otherwise the declared default.
    pub fn value<T: FromStr + Clone>(&self, flag: &Flag<T>, subject: &Subject) -> T {
        self.read(flag, self.variant_of(&flag.name, subject).as_ref())
    }

    /// The flag's answer for this subject, now; `None` if the source was never reached or does not have the flag.
    ///
    /// `name` is `'static`, because it becomes the label of a metric.
    pub fn variant(&self, name: &'static str, subject: &Subject) -> Option<Variant> {
        self.variant_of(&Name::new(name), subject)
    }

    /// The state of a flag that steers the whole fleet and not one request.
    ///
    /// It is evaluated for a constant subject whose user and session are the flag's name, so that all instances get the
    /// same answer. A flag that can still give two answers at once is [`Switch::Unknown`]: with Unleash, a flag with a
    /// rollout between 0 and 100 %, or with variants of different payloads. Only a flag that exists and is turned off is
    /// [`Switch::Off`].
    pub fn switch(&self, name: &str) -> Switch {
        self.0.source.switch(name)
    }

    /// Runs `new` if the flag is on for this subject, otherwise `legacy`. Only the chosen one is called.
    ///
    /// # Cancel safety
    ///
    /// That of the chosen future.
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

    /// Changes or adds a flag of [`fixed`](Self::fixed).
    ///
    /// # Errors
    ///
    /// [`FlagsError::NotFixed`] if a server owns the flags.
    pub fn set(&self, name: &str, flag: FixedFlag) -> Result<(), FlagsError> {
        match &self.0.source {
            Source::Fixed(fixed) => fixed.set(name, &flag),
            #[cfg(any(feature = "unleash", feature = "openfeature"))]
            _ => return Err(FlagsError::NotFixed),
        }
        self.0.revision.send_modify(|revision| *revision += 1);
        Ok(())
    }

    /// A number that increases when the flags change, to wait for a change.
    ///
    /// It does not change when the server becomes unreachable. To notice that, also poll [`is_fresh`](Self::is_fresh) or
    /// [`switch`](Self::switch).
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.revision.subscribe()
    }

    /// Whether there is a state, from the server or from a backup.
    pub fn is_ready(&self) -> bool {
        self.0.source.is_loaded()
    }

    /// Waits until [`is_ready`](Self::is_ready). Use it with a time limit, because a service can start with the declared
    /// defaults.
    ///
    /// # Cancel safety
    ///
    /// Safe: it only waits.
    pub async fn ready(&self) {
        let mut changed = self.changed();
        while !self.is_ready() {
            // An OpenFeature provider sends no notifications, so poll as well.
            let _ = tokio::time::timeout(READY_POLL, changed.changed()).await;
        }
    }

    /// Whether the source answered recently; always true for [`fixed`](Self::fixed).
    pub fn is_fresh(&self) -> bool {
        self.0.source.is_fresh()
    }

    /// The error of the last request to the flag server; `None` after a success, and for sources that send no requests.
    pub fn last_fetch_error(&self) -> Option<FetchError> {
        self.0.source.last_fetch_error()
    }

    /// Declared flags that are missing or stale in the source; empty before [`is_ready`](Self::is_ready).
    pub fn coverage<'a>(&self, declared: impl IntoIterator<Item = &'a str>) -> Vec<FlagProblem> {
        let problem = |flag: &'a str| {
            let kind = self.0.source.problem(&Name::new(flag))?;
            let flag = flag.to_owned();
            Some(FlagProblem { flag, kind })
        };
        declared.into_iter().filter_map(problem).collect()
    }

    /// The current state as the server sent it, for [`UnleashOptions::bootstrap`] of another instance; `None` if there is
    /// none, and for other sources. It contains user ids only if strategies do.
    #[cfg(feature = "unleash")]
    pub fn snapshot(&self) -> Option<bytes::Bytes> {
        match &self.0.source {
            Source::Unleash(unleash) => unleash.body(),
            _ => None,
        }
    }

    /// Stops polling and sends the remaining counts to the server. Takes at most twice the source's time limit, because a
    /// report may be in progress. Decisions continue with the last state. A second call does nothing.
    ///
    /// # Cancel safety
    ///
    /// When dropped, polling still ends, but counts may be lost.
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
        let known =
            tokio::time::timeout(limit, self.0.source.resolve(&flag.name, subject, flag.default)).await;
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
            #[cfg(feature = "unleash")]
            Source::Client(_) => "client",
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
