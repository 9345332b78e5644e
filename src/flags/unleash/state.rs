//! The engine with a state in it, and how old that is.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use tokio::time::Instant;
use unleash_yggdrasil::state::{EnrichedContext, PropertiesRef};
use unleash_yggdrasil::{EngineState, UpdateMessage};

use super::options::UnleashOptions;
use crate::flags::counters::Fetches;
use crate::flags::flag::{PayloadKind, Variant};
use crate::flags::names::{Name, NameMap};
use crate::flags::source::FlagProblemKind;
use crate::flags::subject::Subject;

/// Evaluates flags by the last state that was loaded.
///
/// It asks the engine itself and not the client around it: that one puts a lock around the engine, and counts
/// into lines of memory that all threads share.
pub(in crate::flags) struct Unleash {
    app_name: String,
    loaded: ArcSwapOption<Loaded>,
    pub(in crate::flags) freshness: Freshness,
    /// Whether a flag that breaks the engine was spoken of.
    broken: AtomicBool,
}

pub(super) struct Loaded {
    body: Bytes,
    engine: EngineState,
    flags: NameMap<IsStale>,
}

type IsStale = bool;

impl Loaded {
    /// Reads a state. Compiles every strategy, so it is not for a thread that serves requests.
    pub(super) fn read(body: Bytes) -> Result<Self, String> {
        // All flags, or the events that lead to them.
        let state: UpdateMessage = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        let engine = EngineState::default();
        for warning in engine.take_state(state).into_iter().flatten() {
            tracing::warn!(flag = warning.toggle_name, warning.message, "a flag that can't be understood");
        }
        let flags = engine.get_state().features.into_iter();
        let flags = flags.map(|flag| (flag.name, flag.stale == Some(true))).collect();
        Ok(Self { body, engine, flags })
    }
}

impl Unleash {
    pub(super) fn new(options: &UnleashOptions) -> Self {
        Self {
            app_name: options.app_name.clone(),
            loaded: ArcSwapOption::empty(),
            freshness: Freshness::new(options.stale_after),
            broken: AtomicBool::new(false),
        }
    }

    pub(super) fn load(&self, loaded: Loaded) {
        self.loaded.store(Some(Arc::new(loaded)));
    }

    /// Takes over a state that was kept, unless there is one: what is kept is never newer.
    pub(super) fn load_if_empty(&self, loaded: Loaded) -> bool {
        let nothing: Option<Arc<Loaded>> = None;
        self.loaded.compare_and_swap(&nothing, Some(Arc::new(loaded))).is_none()
    }

    /// The state that is in use, as the server sent it.
    pub(in crate::flags) fn body(&self) -> Option<Bytes> {
        self.loaded.load().as_ref().map(|loaded| loaded.body.clone())
    }

    pub(in crate::flags) fn is_loaded(&self) -> bool {
        self.loaded.load().is_some()
    }

    pub(in crate::flags) fn enabled(&self, name: &Name<'_>, subject: &Subject) -> Option<bool> {
        self.ask(name, |engine| engine.check_enabled(&self.context(name, subject)))
    }

    pub(in crate::flags) fn variant(&self, name: &Name<'_>, subject: &Subject) -> Option<Variant> {
        self.ask(name, |engine| {
            let context = self.context(name, subject);
            let variant = engine.check_variant(&context)?;
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
                // No variant: the flag is off, or on without any.
                Variant::plain(engine.check_enabled(&context).unwrap_or(false))
            })
        })
    }

    /// `None` without a state, for a flag that is not in it, and for one that breaks the engine:
    /// variants whose weights are all zero do (0.21.6), and a server may send them.
    fn ask<T>(&self, name: &Name<'_>, question: impl FnOnce(&EngineState) -> Option<T>) -> Option<T> {
        let loaded = self.loaded.load();
        let engine = &loaded.as_ref()?.engine;
        // The engine is only read here.
        catch_unwind(AssertUnwindSafe(|| question(engine))).unwrap_or_else(|_| {
            if !self.broken.swap(true, Ordering::Relaxed) {
                tracing::error!(flag = name.text, "this flag can't be evaluated: its default counts");
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
            Some(stale) => stale.then_some(FlagProblemKind::Stale),
        }
    }
}

/// When the server last answered, by the monotonic clock for decisions and by the wall clock for
/// people.
pub(in crate::flags) struct Freshness {
    start: Instant,
    stale_after: Duration,
    /// Milliseconds from `start` to the last answer, plus one; 0 before the first.
    answered: AtomicU64,
    pub(in crate::flags) fetches: Arc<Fetches>,
}

impl Freshness {
    fn new(stale_after: Duration) -> Self {
        Self { start: Instant::now(), stale_after, answered: AtomicU64::new(0), fetches: Arc::default() }
    }

    /// The server answered a request that was sent at `asked`: that is how old the state is.
    pub(super) fn answered(&self, asked: Instant) {
        let since_start = millis(asked.saturating_duration_since(self.start));
        self.answered.store(since_start.saturating_add(1), Ordering::Release);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.fetches.last_success.store(millis(now), Ordering::Relaxed);
    }

    pub(in crate::flags) fn is_fresh(&self) -> bool {
        let answered = self.answered.load(Ordering::Acquire);
        answered > 0
            && self.start.elapsed().saturating_sub(Duration::from_millis(answered - 1)) <= self.stale_after
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
