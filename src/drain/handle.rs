use std::future::{Future, ready};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use std::{fmt, io};

use axum::Router;
use axum::routing::get;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::Instant;

use super::registry::Registry;
use super::{App, DrainError, DrainOptions, DrainReport, Listen, sequence, serve};
use crate::health::{Criticality, Health, Signal};

/// How far the one drain of this process has come. Stages only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Stage {
    Serving,
    /// Not ready, but still accepting.
    Propagating,
    /// No longer accepting; requests go on.
    Closing,
    /// The deadline has passed, or nothing was left.
    Forced,
    /// The hooks have run and the report is there.
    Finished,
}

pub(super) type Hook = (Arc<str>, Box<dyn FnOnce(Duration) -> BoxFuture<'static, ()> + Send>);

pub(super) struct Inner {
    pub(super) options: DrainOptions,
    pub(super) registry: Registry,
    pub(super) stage: watch::Sender<Stage>,
    /// The same for the request path, which must not take the channel's lock.
    now: AtomicU8,
    /// `None` once the hooks have been started.
    pub(super) hooks: Mutex<Option<Vec<Hook>>>,
    pub(super) report: OnceLock<DrainReport>,
    readiness: Signal,
    runtime: Handle,
    signals: AtomicBool,
}

impl Inner {
    pub(super) fn is_at(&self, stage: Stage) -> bool {
        self.now.load(Ordering::Acquire) >= stage as u8
    }

    pub(super) fn enter(&self, stage: Stage) {
        self.now.fetch_max(stage as u8, Ordering::AcqRel);
        self.stage.send_replace(stage);
        self.registry.wake_connections();
    }

    pub(super) async fn reached(&self, stage: Stage) {
        // The sender is in `self`, so the wait can only end by the stage.
        let _ = self.stage.subscribe().wait_for(|now| *now >= stage).await;
    }
}

/// The one drain of a process: begins it, serves until it ends, tells others about it.
///
/// Clones are the same drain. See the [module](super) for what happens when.
///
/// ```no_run
/// use axum::{Router, routing::get};
/// use cutover::{drain::{Drain, DrainOptions}, health::Health};
/// use tokio::net::TcpListener;
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let health = Health::new();
/// let drain = Drain::new(&health, DrainOptions::default())?;
/// let app = Router::new().route("/", get(|| async { "hello" }));
/// let admin = health.router().merge(drain.router());
///
/// let (report, _) = tokio::try_join!(
///     drain.serve(TcpListener::bind("0.0.0.0:8080").await?, app),
///     drain.serve_admin(TcpListener::bind("0.0.0.0:8081").await?, admin),
/// )?;
/// if !report.cut.is_empty() {
///     eprintln!("cut: {:?}", report.cut);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Drain {
    pub(super) inner: Arc<Inner>,
}

impl Drain {
    /// A drain that takes `health` down (under the name `drain`) when it begins.
    ///
    /// # Errors
    ///
    /// All unusable options at once; or no Tokio runtime to run the sequence on.
    pub fn new(health: &Health, options: DrainOptions) -> Result<Self, DrainError> {
        let mut problems = options.validate();
        let runtime = match Handle::try_current() {
            Ok(runtime) if problems.is_empty() => runtime,
            Ok(_) => return Err(DrainError::new(problems)),
            Err(_) => {
                problems.push("a drain must be made inside a Tokio runtime".to_owned());
                return Err(DrainError::new(problems));
            }
        };
        let readiness = health.signal("drain", Criticality::Critical);
        readiness.ok();
        Ok(Self {
            inner: Arc::new(Inner {
                options,
                registry: Registry::default(),
                stage: watch::Sender::new(Stage::Serving),
                now: AtomicU8::new(Stage::Serving as u8),
                hooks: Mutex::new(Some(Vec::new())),
                report: OnceLock::new(),
                readiness,
                runtime,
                signals: AtomicBool::new(false),
            }),
        })
    }

    /// Begins the drain and returns at once. A second call joins the first.
    pub fn begin(&self) {
        let first = self.inner.now.fetch_max(Stage::Propagating as u8, Ordering::AcqRel);
        if first != Stage::Serving as u8 {
            return;
        }
        self.inner.readiness.fail("draining");
        self.inner.enter(Stage::Propagating);
        let sequence = sequence::run(Arc::clone(&self.inner), Instant::now());
        self.inner.runtime.spawn(sequence);
    }

    /// Whether a drain has begun: one atomic load.
    pub fn draining(&self) -> bool {
        self.inner.is_at(Stage::Propagating)
    }

    /// Waits for the begin. For streams and loops that would not end by themselves.
    ///
    /// Cancel safe.
    pub async fn begun(&self) {
        self.inner.reached(Stage::Propagating).await;
    }

    /// Waits until endpoints had time to learn of it: from here on no new connection is accepted, and what the requests
    /// that are left don't need can be given away.
    ///
    /// Cancel safe.
    pub async fn propagated(&self) {
        self.inner.reached(Stage::Closing).await;
    }

    /// Waits for the end and says how it went.
    ///
    /// Cancel safe.
    pub async fn finished(&self) -> DrainReport {
        self.inner.reached(Stage::Finished).await;
        self.inner.report.get().cloned().unwrap_or_default()
    }

    /// Work beside requests (a pinned transaction, a job) that the drain has to wait for
    /// until the guard is dropped.
    pub fn work(&self, name: impl Into<Arc<str>>) -> WorkGuard {
        WorkGuard { id: self.inner.registry.add_work(name.into()), inner: Arc::clone(&self.inner) }
    }

    /// Runs `hook` after requests and work have ended (or were cut) and before
    /// [`Drain::serve`] returns. It is told how much time is left, and dropped after that.
    ///
    /// Hooks run side by side, so that a slow one takes no time from the others; what has to
    /// happen in order belongs in one hook. A hook that is added once they run is dropped,
    /// and a warning is logged.
    pub fn on_drain<F, Fut>(&self, name: impl Into<Arc<str>>, hook: F)
    where
        F: FnOnce(Duration) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let name = name.into();
        let mut hooks = self.inner.hooks.lock().unwrap_or_else(PoisonError::into_inner);
        match hooks.as_mut() {
            Some(hooks) => hooks.push((name, Box::new(|left| Box::pin(hook(left))))),
            None => tracing::warn!(%name, "hook added after the drain's hooks were started"),
        }
    }

    /// Begins the drain on SIGTERM and SIGINT, from now on. [`Drain::serve`] calls it.
    ///
    /// The signals no longer end the process by themselves.
    ///
    /// # Errors
    ///
    /// The handlers can't be installed; a later call tries again.
    pub fn on_signals(&self) -> io::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        if self.inner.signals.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let drain = self.clone();
        self.inner.runtime.spawn(async move {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
                () = drain.begun() => return,
            };
            tracing::info!("{name}: draining");
            drain.begin();
        });
        Ok(())
    }

    /// `POST` and `GET /drain` for a preStop hook: begins the drain and answers when
    /// propagation has passed. Repeated calls join the same drain.
    pub fn router(&self) -> Router {
        let inner = Arc::clone(&self.inner);
        let drain = self.clone();
        let handler = move || {
            drain.begin();
            let inner = Arc::clone(&inner);
            async move {
                inner.reached(Stage::Closing).await;
                "draining: endpoints had time to learn of it\n"
            }
        };
        Router::new().route("/drain", get(handler.clone()).post(handler))
    }

    /// Serves HTTP/1 and HTTP/2 until a drain has ended, and says how it went.
    ///
    /// `app` is an axum `Router`, tonic's `Routes`, or any other [`App`]. Handlers find the
    /// peer as `ConnectInfo<SocketAddr>` (of a Unix listener, tokio's `unix::SocketAddr`). An
    /// error of `accept` (too many open files) pauses accepting and never ends it. May be
    /// called for several listeners.
    ///
    /// Not cancel safe: dropped, it stops accepting at once. Connections go on, and a drain
    /// still waits for them.
    ///
    /// # Errors
    ///
    /// The signal handlers can't be installed.
    pub async fn serve(&self, listener: impl Listen, app: impl App) -> io::Result<DrainReport> {
        self.serve_with(listener, |stream| ready(Ok(stream)), app).await
    }

    /// [`serve`](Self::serve), with a handshake at the beginning of each connection: TLS by
    /// an acceptor of your own, or a PROXY header to be read off.
    ///
    /// The handshake runs in the connection's own task, so a slow one holds up nobody. It may
    /// take 10 seconds and never longer than the drain's deadline; when it fails, the
    /// connection is dropped. For HTTP/2 the acceptor has to offer `h2` by ALPN.
    ///
    /// ```ignore
    /// let tls = tokio_rustls::TlsAcceptor::from(config);
    /// drain.serve_with(listener, move |stream| tls.accept(stream), app).await?;
    /// ```
    ///
    /// # Errors
    ///
    /// The signal handlers can't be installed.
    ///
    /// # Cancel safety
    ///
    /// As [`serve`](Self::serve).
    pub async fn serve_with<L, H, Fut, IO>(
        &self,
        listener: L,
        handshake: H,
        app: impl App,
    ) -> io::Result<DrainReport>
    where
        L: Listen,
        H: Fn(L::Stream) -> Fut + Send,
        Fut: Future<Output = io::Result<IO>> + Send + 'static,
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.on_signals()?;
        serve::public(Arc::clone(&self.inner), listener, handshake, app).await;
        Ok(self.finished().await)
    }

    /// Serves the admin pages (health, metrics, [`Drain::router`]) until the drain has ended,
    /// so that probes and scrapes see all of it. Nothing waits for its connections.
    ///
    /// Not cancel safe: dropped, it stops serving.
    ///
    /// # Errors
    ///
    /// The signal handlers can't be installed.
    pub async fn serve_admin(&self, listener: impl Listen, app: impl App) -> io::Result<()> {
        self.on_signals()?;
        serve::admin(Arc::clone(&self.inner), listener, app).await;
        Ok(())
    }
}

impl fmt::Debug for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drain")
            .field("stage", &*self.inner.stage.borrow())
            .field("options", &self.inner.options)
            .finish_non_exhaustive()
    }
}

/// Something that a drain waits for until it is dropped; from [`Drain::work`].
#[must_use = "the drain waits only while this is held"]
pub struct WorkGuard {
    id: u64,
    inner: Arc<Inner>,
}

impl Drop for WorkGuard {
    fn drop(&mut self) {
        self.inner.registry.remove_work(self.id);
    }
}

impl fmt::Debug for WorkGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkGuard").field("id", &self.id).finish_non_exhaustive()
    }
}
