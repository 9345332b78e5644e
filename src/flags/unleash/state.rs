//! The client with a state in it, and how old that is.

use std::{
    fmt::Debug,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use serde::Deserialize;
use tokio::time::Instant;
use unleash_api_client::{ClientBuilder, api::Metrics, client::FeatureKey};

use super::{options::UnleashOptions, transport::Http};
use crate::flags::{
    counters::Fetches,
    flag::Variant,
    names::{Name, NameMap},
    source::Lack,
    subject::Subject,
};

/// The client wants a type of keys; flags are asked for by name.
#[derive(Clone, Copy, Debug)]
pub(super) enum ByName {}

impl FeatureKey for ByName {
    fn name(self) -> &'static str {
        match self {}
    }
}

pub(super) type Client = unleash_api_client::Client<ByName>;

/// Evaluates flags by the last state that was loaded.
pub(in crate::flags) struct Unleash {
    pub(super) client: Client,
    app_name: String,
    loaded: ArcSwapOption<Loaded>,
    pub(in crate::flags) freshness: Freshness,
}

struct Loaded {
    body: Bytes,
    flags: NameMap<IsStale>,
    /// Whether any strategy may look at the application's name: a context with it costs copies.
    mentions_app: bool,
}

type IsStale = bool;

#[derive(Deserialize)]
struct Listing {
    features: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    name: String,
    #[serde(default)]
    stale: Option<bool>,
}

impl Unleash {
    pub(super) fn new(options: &UnleashOptions, api: &str, http: Arc<Http>) -> anyhow::Result<Self> {
        let interval = u64::try_from(options.interval.as_millis()).unwrap_or(u64::MAX);
        let client =
            ClientBuilder::default().enable_string_features().interval(interval).into_client_with_transport(
                api,
                &options.app_name,
                &options.instance_id,
                Some(options.token.clone()),
                http,
            )?;
        Ok(Self {
            client,
            app_name: options.app_name.clone(),
            loaded: ArcSwapOption::empty(),
            freshness: Freshness::new(options.stale_after),
        })
    }

    /// Takes over a state, and gives what was counted under the one before. Compiles every
    /// strategy, so it is not for a thread that serves requests.
    pub(super) fn load(&self, body: Bytes) -> Result<Option<Metrics>, String> {
        let listing: Listing = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        let features = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        let counted = self.client.memoize(features).map_err(|error| error.to_string())?;
        let flags = listing.features.into_iter();
        self.loaded.store(Some(Arc::new(Loaded {
            mentions_app: contains(&body, b"\"appName\""),
            body,
            flags: flags.map(|flag| (flag.name, flag.stale == Some(true))).collect(),
        })));
        Ok(counted)
    }

    /// The state that is in use, as the server sent it.
    pub(in crate::flags) fn body(&self) -> Option<Bytes> {
        self.loaded.load().as_ref().map(|loaded| loaded.body.clone())
    }

    pub(in crate::flags) fn is_loaded(&self) -> bool {
        self.loaded.load().is_some()
    }

    pub(in crate::flags) fn enabled(&self, name: &Name<'_>, subject: &Subject) -> Option<bool> {
        let loaded = self.loaded.load();
        let loaded = loaded.as_ref()?;
        // The client answers `false` where it can't tell; what it can't tell isn't asked.
        loaded.flags.get(name)?;
        Some(if loaded.mentions_app {
            let context = subject.context_in(&self.app_name);
            self.client.is_enabled_str(name.text, Some(&context), false)
        } else {
            self.client.is_enabled_str(name.text, Some(subject.context()), false)
        })
    }

    pub(in crate::flags) fn variant(&self, name: &Name<'_>, subject: &Subject) -> Option<Variant> {
        let loaded = self.loaded.load();
        let loaded = loaded.as_ref()?;
        loaded.flags.get(name)?;
        let in_app = loaded.mentions_app.then(|| subject.context_in(&self.app_name));
        let context = in_app.as_ref().unwrap_or(subject.context());
        let mut variant = self.client.get_variant_str(name.text, context);
        Some(if variant.enabled {
            Variant { enabled: true, name: Some(variant.name), payload: variant.payload.remove("value") }
        } else {
            // No variant: the flag is off, or on without any.
            Variant::plain(self.client.is_enabled_str(name.text, Some(context), false))
        })
    }

    pub(in crate::flags) fn lack(&self, name: &Name<'_>) -> Option<Lack> {
        let loaded = self.loaded.load();
        match loaded.as_ref()?.flags.get(name) {
            None => Some(Lack::Missing),
            Some(stale) => stale.then_some(Lack::Stale),
        }
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
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
