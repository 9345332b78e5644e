//! Keeps the state current, in the background.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    runtime::Handle,
    sync::{Mutex, watch},
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use unleash_api_client::api::{Metrics, features_endpoint};

use super::{backup, options::UnleashOptions, state::Unleash, transport::Http};
use crate::flags::error::{FlagsError, OptionProblem};

/// The background task; ends when this is closed or dropped.
pub(in crate::flags) struct Poller {
    stop: DropGuard,
    task: Mutex<Option<JoinHandle<()>>>,
}

struct Task {
    unleash: Arc<Unleash>,
    http: Arc<Http>,
    api: String,
    revision: watch::Sender<u64>,
    stop: CancellationToken,
    backup: Option<PathBuf>,
    interval: Duration,
    slowest: Duration,
    metrics_interval: Duration,
}

impl Poller {
    pub(in crate::flags) fn start(
        options: UnleashOptions,
        revision: watch::Sender<u64>,
    ) -> Result<(Arc<Unleash>, Self), FlagsError> {
        let endpoint = options.check()?;
        let runtime = Handle::try_current().map_err(|_| FlagsError::NoRuntime)?;
        let unusable = |text: String| {
            let field = "url";
            FlagsError::Options(vec![OptionProblem { field, text }])
        };
        let http = Http::new(endpoint.tls, options.time_limit)
            .map_err(|error| unusable(format!("needs the system's certificates: {error}")))?;
        let http = Arc::new(http);
        let unleash = Unleash::new(&options, &endpoint.api, http.clone())
            .map_err(|error| unusable(error.to_string()))?;
        let unleash = Arc::new(unleash);
        let kept = options.bootstrap;
        let kept = kept.or_else(|| backup::read(options.backup.as_deref()?));
        if let Some(Err(error)) = kept.map(|body| unleash.load(body)) {
            tracing::warn!(
                error,
                "the flags that were kept can't be read: defaults until the server answers"
            );
        }
        let stop = CancellationToken::new();
        let task = Task {
            unleash: unleash.clone(),
            http,
            api: endpoint.api,
            revision,
            stop: stop.clone(),
            backup: options.backup,
            slowest: options.interval.max(options.stale_after / 2),
            interval: options.interval,
            metrics_interval: options.metrics_interval,
        };
        let poller = Self { stop: stop.drop_guard(), task: Mutex::new(Some(runtime.spawn(task.run()))) };
        Ok((unleash, poller))
    }

    pub(in crate::flags) async fn close(&self) {
        self.stop.token().cancel();
        if let Some(task) = self.task.lock().await.take() {
            // It reports its own troubles; that it panicked was reported by the panic itself.
            let _ = task.await;
        }
    }
}

impl Task {
    async fn run(self) {
        let mut failures = 0;
        let mut registered = false;
        let mut reported = Instant::now();
        loop {
            let asked = Instant::now();
            let fetched = tokio::select! {
                () = self.stop.cancelled() => break,
                fetched = self.fetch() => fetched,
            };
            match self.apply(fetched, asked).await {
                Ok(counted) => {
                    if failures > 0 {
                        tracing::info!("the flag server answers again");
                    }
                    failures = 0;
                    self.report(counted).await;
                }
                Err(error) => {
                    self.unleash.freshness.fetches.failed.add_one();
                    // The first of a row; the gauge of the last success tells how it goes on.
                    if failures == 0 {
                        tracing::warn!(error, "no flags from the server: the last state counts");
                    }
                    failures += 1;
                }
            }
            if failures == 0 && !registered {
                registered = self.register().await;
            }
            if !self.metrics_interval.is_zero() && reported.elapsed() >= self.metrics_interval {
                reported = Instant::now();
                self.flush().await;
            }
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = sleep(self.pause(failures)) => {}
            }
        }
        if !self.metrics_interval.is_zero() {
            self.flush().await;
        }
    }

    async fn fetch(&self) -> Result<(), String> {
        self.unleash
            .client
            .http
            .get_json::<()>(&features_endpoint(&self.api), Some(self.interval_ms()))
            .await
            // All causes: "connection refused" is the last of them.
            .map_err(|error| format!("{error:#}"))
    }

    async fn apply(&self, fetched: Result<(), String>, asked: Instant) -> Result<Option<Metrics>, String> {
        fetched?;
        let mut counted = None;
        let was_fresh = self.unleash.freshness.is_fresh();
        let mut changed = false;
        let fetches = &self.unleash.freshness.fetches;
        match self.http.take() {
            Some(features) if self.unleash.body().as_ref() != Some(&features.body) => {
                counted = self.load(features.body.clone()).await?;
                self.http.applied(features.etag);
                self.keep(features.body).await;
                changed = true;
                fetches.changed.add_one();
            }
            None if !self.unleash.is_loaded() => {
                return Err("the server says that nothing changed, but has sent nothing yet".into());
            }
            same => {
                if let Some(features) = same {
                    self.http.applied(features.etag);
                }
                fetches.unchanged.add_one();
            }
        }
        self.unleash.freshness.answered(asked);
        if changed || !was_fresh {
            self.revision.send_modify(|revision| *revision += 1);
        }
        Ok(counted)
    }

    async fn load(&self, body: bytes::Bytes) -> Result<Option<Metrics>, String> {
        let unleash = self.unleash.clone();
        tokio::task::spawn_blocking(move || unleash.load(body))
            .await
            .unwrap_or_else(|error| Err(error.to_string()))
    }

    async fn keep(&self, body: bytes::Bytes) {
        let Some(path) = self.backup.clone() else {
            return;
        };
        let written = tokio::task::spawn_blocking(move || backup::write(&path, &body)).await;
        if let Ok(Err(error)) = written {
            tracing::warn!(%error, "no backup of the flags could be written");
        }
    }

    /// Sends what was counted since the last state was loaded: loading it anew is how the client
    /// gives its counts away.
    async fn flush(&self) {
        if let Some(body) = self.unleash.body()
            && let Ok(counted) = self.load(body).await
        {
            self.report(counted).await;
        }
    }

    async fn report(&self, counted: Option<Metrics>) {
        let Some(counted) = counted.filter(|_| !self.metrics_interval.is_zero()) else {
            return;
        };
        let endpoint = Metrics::endpoint(&self.api);
        let http = &self.unleash.client.http;
        match http.post_json(&endpoint, &counted, Some(self.interval_ms())).await {
            Ok(true) => {}
            Ok(false) => tracing::debug!("the flag server refused a report"),
            Err(error) => tracing::debug!("no report to the flag server: {error:#}"),
        }
    }

    async fn register(&self) -> bool {
        match self.unleash.client.register().await {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(%error, "not registered with the flag server");
                false
            }
        }
    }

    fn pause(&self, failures: u32) -> Duration {
        let factor = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        let pause = self.interval.saturating_mul(factor).min(self.slowest);
        // Instances that began together, or lost the server together, must not ask together.
        pause.mul_f64(0.9 + 0.2 * fastrand::f64())
    }

    fn interval_ms(&self) -> u64 {
        u64::try_from(self.interval.as_millis()).unwrap_or(u64::MAX)
    }
}
