//! The engine with the last state, and the age of that state.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::Instant;
use unleash_yggdrasil::state::{EnrichedContext, ExternalResultsRef, PropertiesRef};
use unleash_yggdrasil::{EngineState, UpdateMessage};

use super::custom::{CustomStrategies, Registered};
use super::definition::{Definition, definitions};
use super::options::UnleashOptions;
use super::shape;
use crate::flags::counters::Fetches;
use crate::flags::error::FetchError;
use crate::flags::flag::{PayloadKind, Variant};
use crate::flags::names::{Name, NameMap};
use crate::flags::problem::{FlagProblemKind, SwitchProblem};
use crate::flags::subject::Subject;

/// Evaluates flags by the last state that was loaded.
///
/// It uses the engine without the client around it, because the client locks the engine for each decision and counts
/// in cache lines that all threads share.
pub(in crate::flags) struct Unleash {
    app_name: String,
    loaded: ArcSwapOption<Loaded>,
    /// Held while a state is compared with the one in use and replaces it.
    offering: Mutex<()>,
    pub(in crate::flags) freshness: Freshness,
    /// Whether a flag that the engine cannot evaluate was logged.
    broken: AtomicBool,
}

/// What became of a state that was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offered {
    /// It replaced the one in use.
    Loaded,
    /// It is the one in use, which is as recent now.
    Same,
    /// The one in use is later.
    Earlier,
}

pub(super) struct Loaded {
    body: Bytes,
    engine: EngineState,
    flags: NameMap<Definition>,
    custom: CustomStrategies,
    /// Whether any flag announces its decisions.
    has_impressions: bool,
}

impl Loaded {
    /// Reads a state on a blocking thread, because compiling strategies takes long.
    pub(super) async fn read_in_background(
        body: Bytes,
        strategies: &Arc<Registered>,
    ) -> Result<Self, String> {
        let strategies = Arc::clone(strategies);
        tokio::task::spawn_blocking(move || Self::read(body, &strategies))
            .await
            .unwrap_or_else(|error| Err(error.to_string()))
    }

    /// Reads a state. This compiles every strategy, so it does not belong on a thread that serves requests.
    pub(super) fn read(body: Bytes, strategies: &Registered) -> Result<Self, String> {
        shape::check(&body)?;
        // Holds either all flags or the events that lead to them.
        let state: UpdateMessage = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        let engine = EngineState::default();
        for warning in engine.take_state(state).into_iter().flatten() {
            tracing::warn!(
                flag = warning.toggle_name,
                warning.message,
                "the engine does not understand a flag"
            );
        }
        let flags = definitions(&engine).map_err(|error| error.to_string())?;
        let custom = CustomStrategies::compile(&engine, strategies);
        let has_impressions = flags.iter().any(|(_, flag)| flag.impression);
        Ok(Self { body, engine, flags, custom, has_impressions })
    }
}

impl Loaded {
    /// Emits an impression event if the flag has impression data turned on.
    #[cold]
    fn announce(&self, name: &Name<'_>, subject: &Subject, enabled: bool, variant: Option<&str>) {
        if self.flags.get(name).is_some_and(|flag| flag.impression) {
            tracing::info!(
                target: "cutover::flags::impression",
                flag = name.text,
                enabled,
                variant,
                user = subject.user_id(),
                "flag decided"
            );
        }
    }
}

impl Unleash {
    pub(super) fn new(options: &UnleashOptions) -> Self {
        Self {
            app_name: options.app_name.clone(),
            loaded: ArcSwapOption::empty(),
            offering: Mutex::new(()),
            freshness: Freshness::new(options.stale_after),
            broken: AtomicBool::new(false),
        }
    }

    pub(super) fn load(&self, loaded: Loaded) {
        self.loaded.store(Some(Arc::new(loaded)));
    }

    /// Takes the state that the server had at `as_of`, unless the one in use is known to be later. `None` is a time too
    /// long ago to be told.
    ///
    /// Every answer of the server and every state in the ledger goes through here. Otherwise a state of an hour ago could
    /// replace the one that this instance has just received, and move a migration back.
    ///
    /// # Errors
    ///
    /// Why the state cannot be read. The one in use stays.
    pub(super) async fn offer(
        &self,
        body: Bytes,
        as_of: Option<Instant>,
        strategies: &Arc<Registered>,
    ) -> Result<Offered, String> {
        let _one_at_a_time = self.offering.lock().await;
        if !self.freshness.is_later(as_of) {
            return Ok(Offered::Earlier);
        }
        let is_same = self.body().as_ref() == Some(&body);
        if !is_same {
            self.load(Loaded::read_in_background(body, strategies).await?);
        }
        if let Some(as_of) = as_of {
            self.freshness.confirmed(as_of);
        }
        Ok(if is_same { Offered::Same } else { Offered::Loaded })
    }

    /// Loads a state from a backup, unless there is a state already: a backup is never newer.
    pub(super) fn load_if_empty(&self, loaded: Loaded) -> bool {
        let nothing: Option<Arc<Loaded>> = None;
        self.loaded.compare_and_swap(&nothing, Some(Arc::new(loaded))).is_none()
    }

    /// The current state as the server sent it.
    pub(in crate::flags) fn body(&self) -> Option<Bytes> {
        self.loaded.load().as_ref().map(|loaded| loaded.body.clone())
    }

    pub(in crate::flags) fn is_loaded(&self) -> bool {
        self.loaded.load().is_some()
    }

    pub(in crate::flags) fn enabled(&self, name: &Name<'_>, subject: &Subject) -> Option<bool> {
        let loaded = self.loaded.load();
        let loaded = loaded.as_ref()?;
        let enabled = self.ask(loaded, name, subject, EngineState::check_enabled)?;
        if loaded.has_impressions {
            loaded.announce(name, subject, enabled, None);
        }
        Some(enabled)
    }

    pub(in crate::flags) fn variant(&self, name: &Name<'_>, subject: &Subject) -> Option<Variant> {
        let loaded = self.loaded.load();
        let loaded = loaded.as_ref()?;
        let variant = self.variant_of(loaded, name, subject)?;
        if loaded.has_impressions {
            loaded.announce(name, subject, variant.enabled, variant.name.as_deref());
        }
        Some(variant)
    }

    /// As [`variant`](Self::variant), for a flag that steers the fleet: it is read again and again, and announces nothing.
    pub(in crate::flags) fn silent_variant(&self, name: &Name<'_>, subject: &Subject) -> Option<Variant> {
        self.variant_of(self.loaded.load().as_ref()?, name, subject)
    }

    fn variant_of(&self, loaded: &Loaded, name: &Name<'_>, subject: &Subject) -> Option<Variant> {
        self.ask(loaded, name, subject, |engine, context| {
            let variant = engine.check_variant(context)?;
            Some(if variant.enabled {
                let payload = variant.payload;
                let kind = payload.as_ref().and_then(|payload| PayloadKind::named(&payload.payload_type));
                Variant {
                    enabled: true,
                    name: Some(variant.name),
                    payload: payload.map(|payload| payload.value),
                    payload_kind: kind,
                }
            } else {
                // No variant: the flag is off, or on without variants.
                Variant::plain(engine.check_enabled(context).unwrap_or(false))
            })
        })
    }

    /// `None` for a flag that is missing, and for a flag that makes the engine or a custom strategy panic. Variants whose
    /// weights are all zero do that (0.21.6), and a server may send them.
    fn ask<T>(
        &self,
        loaded: &Loaded,
        name: &Name<'_>,
        subject: &Subject,
        question: impl FnOnce(&EngineState, &EnrichedContext<'_>) -> Option<T>,
    ) -> Option<T> {
        let answer = || {
            let results = loaded.custom.results(name, subject, &self.app_name);
            let external_results = results.as_ref().map(ExternalResultsRef::Strings);
            let context = EnrichedContext { external_results, ..self.context(name, subject) };
            question(&loaded.engine, &context)
        };
        // Unwind safe, because the engine is only read here.
        catch_unwind(AssertUnwindSafe(answer)).unwrap_or_else(|_| {
            if !self.broken.swap(true, Ordering::Relaxed) {
                tracing::error!(
                    flag = name.text,
                    "the flag cannot be evaluated; its declared default applies"
                );
            }
            None
        })
    }

    fn context<'a>(&'a self, name: &'a Name<'_>, subject: &'a Subject) -> EnrichedContext<'a> {
        EnrichedContext {
            toggle_name: name.text,
            user_id: subject.user_id(),
            session_id: subject.session_id(),
            remote_address: subject.address(),
            environment: subject.get("environment"),
            app_name: subject.get("appName").or(Some(&self.app_name)),
            current_time: subject.get("currentTime"),
            properties: Some(PropertiesRef::Strings(subject.properties())),
            external_results: None,
            runtime_hostname: None,
        }
    }

    pub(in crate::flags) fn problem(&self, name: &Name<'_>) -> Option<FlagProblemKind> {
        let loaded = self.loaded.load();
        match loaded.as_ref()?.flags.get(name) {
            None => Some(FlagProblemKind::Missing),
            Some(definition) => definition.stale.then_some(FlagProblemKind::Stale),
        }
    }

    /// Whether a person turned the flag off; an error if it is missing or can give more than one answer at once.
    pub(in crate::flags) fn is_off(&self, name: &Name<'_>) -> Result<bool, SwitchProblem> {
        let loaded = self.loaded.load();
        let definition = loaded.as_ref().and_then(|loaded| loaded.flags.get(name));
        let definition = definition.ok_or(SwitchProblem::Missing)?;
        match &definition.ambiguity {
            Some(ambiguity) if definition.enabled => Err(SwitchProblem::Ambiguous(ambiguity.clone())),
            _ => Ok(!definition.enabled),
        }
    }
}

/// When the server last answered: by the monotonic clock for decisions, by the wall clock for the metric.
pub(in crate::flags) struct Freshness {
    /// `stale_after` before the start: an answer from before this time has never been fresh here.
    epoch: Instant,
    stale_after: Duration,
    /// Milliseconds from `epoch` to the time of the state in use, plus one; 0 before the first.
    answered: AtomicU64,
    /// The error of the last request; `None` after a success.
    error: ArcSwapOption<FetchError>,
    pub(in crate::flags) fetches: Arc<Fetches>,
}

impl Freshness {
    fn new(stale_after: Duration) -> Self {
        let now = Instant::now();
        Self {
            epoch: now.checked_sub(stale_after).unwrap_or(now),
            stale_after,
            answered: AtomicU64::new(0),
            error: ArcSwapOption::empty(),
            fetches: Arc::default(),
        }
    }

    /// Records that the last request succeeded.
    pub(super) fn succeeded(&self) {
        self.error.store(None);
    }

    /// Milliseconds from `epoch`, plus one; `None` for a time before it.
    fn since_epoch(&self, time: Option<Instant>) -> Option<u64> {
        Some(millis(time?.checked_duration_since(self.epoch)?).saturating_add(1))
    }

    /// Whether the state of the server at `as_of` is not older than the one in use.
    fn is_later(&self, as_of: Option<Instant>) -> bool {
        self.since_epoch(as_of).unwrap_or(0) >= self.answered.load(Ordering::Acquire)
    }

    /// Records that the state is that of the server at `asked`, whichever instance asked.
    fn confirmed(&self, asked: Instant) {
        let Some(since_epoch) = self.since_epoch(Some(asked)) else { return };
        self.answered.fetch_max(since_epoch, Ordering::Release);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at = millis(now.saturating_sub(asked.elapsed()));
        self.fetches.last_success.fetch_max(at, Ordering::Relaxed);
    }

    pub(super) fn failed(&self, error: FetchError) {
        self.fetches.failed.add_one();
        self.error.store(Some(Arc::new(error)));
    }

    pub(in crate::flags) fn last_error(&self) -> Option<FetchError> {
        self.error.load().as_deref().cloned()
    }

    pub(in crate::flags) fn is_fresh(&self) -> bool {
        let answered = self.answered.load(Ordering::Acquire);
        answered > 0
            && self.epoch.elapsed().saturating_sub(Duration::from_millis(answered - 1)) <= self.stale_after
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
