//! Keeps the state up to date in the background.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::backup::{self, Backup, BackupError};
use super::custom::Registered;
use super::fleet::Fleet;
use super::options::UnleashOptions;
use super::report::Reporter;
use super::server::Server;
use super::state::{Loaded, Offered, Unleash};
use super::transport::NoState;
use crate::config::{ConfigError, Problem};
use crate::flags::counters::{Fetches, Tally};
use crate::flags::error::{FetchError, FlagsError, unavailable};

/// The background task. It ends when this is closed or dropped.
pub(in crate::flags) struct Poller {
    stop: DropGuard,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// The pause after a failed registration if no metrics are reported.
const REGISTER_AGAIN: Duration = Duration::from_secs(60);

struct Task {
    unleash: Arc<Unleash>,
    fleet: Option<Fleet>,
    server: Server,
    strategies: Arc<Registered>,
    tally: Arc<Tally>,
    revision: watch::Sender<u64>,
    stop: CancellationToken,
    changed: Notify,
    backup: Option<Arc<dyn Backup>>,
    time_limit: Duration,
    interval: Duration,
    slowest: Duration,
    metrics_interval: Duration,
}

impl Poller {
    pub(in crate::flags) fn start(
        mut options: UnleashOptions,
        revision: watch::Sender<u64>,
        tally: Arc<Tally>,
    ) -> Result<(Arc<Unleash>, Self), FlagsError> {
        let endpoint = options.check()?;
        let runtime = Handle::try_current().map_err(|_| FlagsError::NoRuntime)?;
        let api = endpoint.api.clone();
        let server = Server::new(&options, endpoint).map_err(|error| {
            let problem =
                format!("https needs the system's root certificates, which could not be loaded: {error}");
            ConfigError { problems: vec![Problem::new("url", problem)] }
        })?;
        let reporter = Reporter::new(&options);
        let unleash = Arc::new(Unleash::new(&options));
        let strategies = Arc::new(std::mem::take(&mut options.strategies));
        match options.bootstrap.take().map(|body| Loaded::read(body, &strategies)) {
            Some(Ok(state)) => unleash.load(state),
            Some(Err(error)) => {
                tracing::warn!(
                    error,
                    "could not read `bootstrap`; declared defaults apply until the flag server answers"
                );
            }
            None => {}
        }
        let stop = CancellationToken::new();
        let fleet =
            Fleet::new(&options, &api, unleash.clone(), strategies.clone(), revision.clone(), stop.clone());
        let task = Task {
            unleash: unleash.clone(),
            fleet,
            server,
            strategies,
            tally,
            revision,
            stop: stop.clone(),
            changed: Notify::new(),
            backup: options.backup,
            time_limit: options.time_limit,
            slowest: options.interval.max(options.stale_after / 2),
            interval: options.interval,
            metrics_interval: options.metrics_interval,
        };
        let task = runtime.spawn(task.run(reporter));
        Ok((unleash, Self { stop: stop.drop_guard(), task: Mutex::new(Some(task)) }))
    }

    pub(in crate::flags) async fn close(&self) {
        self.stop.token().cancel();
        if let Some(task) = self.task.lock().await.take() {
            // The task logs its own errors, and a panic was reported by the panic hook.
            let _ = task.await;
        }
    }
}

impl Task {
    /// Runs four loops concurrently, because a slow backup, report or ledger must not delay a change.
    async fn run(self, reporter: Reporter) {
        tokio::join!(self.poll(), self.follow(), self.back_up(), self.report(reporter));
    }

    async fn poll(&self) {
        let mut failures = 0;
        let mut logged = None;
        // What the server means by "not modified", whatever has been loaded since from the ledger.
        let mut polled = None;
        loop {
            let asked = Instant::now();
            let fetched = tokio::select! {
                () = self.stop.cancelled() => return,
                fetched = self.server.features() => fetched,
            };
            let mut pause = Duration::ZERO;
            match self.apply(fetched, asked, &mut polled).await {
                Ok(offered) => {
                    if failures > 0 {
                        tracing::info!("flag server reachable again");
                    }
                    failures = 0;
                    if let Some(fleet) = &self.fleet
                        && offered != Offered::Earlier
                    {
                        fleet.tell(asked).await;
                    }
                }
                Err((error, retry_after)) => {
                    // Only the first of a kind in a row is logged; the gauge of the last success shows the rest.
                    if failures == 0 || logged != Some(error.kind) {
                        logged = Some(error.kind);
                        tracing::warn!(%error, "could not fetch flags; the last known state applies");
                    }
                    self.unleash.freshness.failed(error);
                    failures += 1;
                    pause = retry_after.unwrap_or_default();
                }
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = sleep(self.pause(failures).max(pause)) => {}
                () = self.polls_often(), if pause.is_zero() => {}
            }
        }
    }

    async fn follow(&self) {
        if let Some(fleet) = &self.fleet {
            fleet.follow().await;
        }
    }

    /// Waits until this instance has to poll often again.
    async fn polls_often(&self) {
        match &self.fleet {
            Some(fleet) => fleet.polls_often().await,
            None => std::future::pending().await,
        }
    }

    async fn back_up(&self) {
        let Some(backup) = &self.backup else { return };
        self.restore(&**backup).await;
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.changed.notified() => {}
            }
            let Some(body) = self.unleash.body() else { continue };
            match self.bounded(backup.save(backup::seal(&body))).await {
                Some(Ok(())) => self.fetches().saved.add_one(),
                Some(Err(error)) => self.backup_failed(&error, "could not save the flags to the backup"),
                None => return,
            }
        }
    }

    /// Loads the backup, unless the server answers first.
    async fn restore(&self, backup: &dyn Backup) {
        let kept = async {
            let Some(sealed) = backup.load().await? else { return Ok(None) };
            Loaded::read_in_background(backup::open(&sealed)?, &self.strategies)
                .await
                .map(Some)
                .map_err(BackupError::Damaged)
        };
        match self.bounded(kept).await {
            Some(Ok(Some(state))) => {
                if self.unleash.load_if_empty(state) {
                    self.fetches().restored.add_one();
                    self.revision.send_modify(|revision| *revision += 1);
                }
            }
            Some(Err(error)) => self.backup_failed(&error, "could not load the flags from the backup"),
            Some(Ok(None)) | None => {}
        }
    }

    /// Applies the answer to a poll. An error has the pause that the server demands.
    async fn apply(
        &self,
        fetched: Result<Bytes, NoState>,
        asked: Instant,
        polled: &mut Option<Bytes>,
    ) -> Result<Offered, (FetchError, Option<Duration>)> {
        let was_fresh = self.unleash.freshness.is_fresh();
        let (body, is_new) = match fetched {
            Ok(body) => (Some(body), true),
            // The application's transport may know a state that this task has not seen.
            Err(NoState::Unchanged) => (polled.clone().or_else(|| self.unleash.body()), false),
            Err(NoState::Failed { error, retry_after }) => return Err((error, retry_after)),
        };
        let Some(body) = body else {
            return Err((
                unavailable("the flag server answered \"not modified\" before it sent a state"),
                None,
            ));
        };
        let offered = self.unleash.offer(body.clone(), Some(asked), &self.strategies).await;
        let offered = offered.map_err(|error| (self.server.no_flags(error), None))?;
        if is_new {
            // Only now, so that a state that failed to load is fetched again.
            self.server.confirm();
            *polled = Some(body);
        }
        if offered == Offered::Loaded {
            self.changed.notify_one();
            self.fetches().changed.add_one();
        } else {
            self.fetches().unchanged.add_one();
        }
        self.unleash.freshness.succeeded();
        if offered == Offered::Loaded || !was_fresh {
            self.revision.send_modify(|revision| *revision += 1);
        }
        Ok(offered)
    }

    /// `None` if the task was stopped.
    async fn bounded<T>(
        &self,
        work: impl Future<Output = Result<T, BackupError>>,
    ) -> Option<Result<T, BackupError>> {
        tokio::select! {
            () = self.stop.cancelled() => None,
            done = timeout(self.time_limit, work) => Some(done.unwrap_or_else(|_| {
                Err(BackupError::place(format!("no answer within {:?}", self.time_limit)))
            })),
        }
    }

    fn backup_failed(&self, error: &BackupError, what: &str) {
        match error {
            BackupError::Place(_) => self.fetches().backup_failed.add_one(),
            _ => self.fetches().refused.add_one(),
        }
        tracing::warn!(%error, backup = ?self.backup, "{what}");
    }

    /// Registers with the server and reports counts, regularly and at the end.
    async fn report(&self, mut reporter: Reporter) {
        let wanted = !self.metrics_interval.is_zero();
        let pause = if wanted { self.metrics_interval } else { REGISTER_AGAIN };
        let mut registered = false;
        loop {
            if !registered {
                tokio::select! {
                    () = self.stop.cancelled() => break,
                    done = self.server.register() => registered = self.is_sent("registration", done),
                }
            }
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = sleep(pause) => {}
            }
            if wanted {
                self.flush(&mut reporter).await;
            }
        }
        if wanted {
            self.flush(&mut reporter).await;
        }
    }

    async fn flush(&self, reporter: &mut Reporter) {
        let Some(report) = reporter.report(&self.tally) else { return };
        let sent = self.server.report(&reporter.signed(&report, self.server.connection())).await;
        if self.is_sent("counts", sent) {
            reporter.accepted(report);
        }
    }

    fn is_sent(&self, what: &str, sent: Result<(), FetchError>) -> bool {
        sent.inspect_err(|error| tracing::debug!(%error, "could not send {what} to the flag server")).is_ok()
    }

    fn fetches(&self) -> &Fetches {
        &self.unleash.freshness.fetches
    }

    fn pause(&self, failures: u32) -> Duration {
        let base = self.fleet.as_ref().map_or(self.interval, Fleet::poll_interval);
        let factor = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        let pause = self.interval.saturating_mul(factor).min(self.slowest).max(base);
        // Jitter, so that instances that started together do not poll together.
        pause.mul_f64(0.9 + 0.2 * fastrand::f64())
    }
}
