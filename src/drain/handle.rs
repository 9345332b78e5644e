use std::future::ready;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use std::{fmt, io};

use axum::Router;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::stage::Stage;
use super::state::State;
use super::{App, DrainOptions, DrainReport, Listen, endpoint, sequence, serve};
use crate::health::{Criticality, Health};
use crate::{ConfigError, Problem};

/// Drains this process: stops it without dropping a request.
///
/// Clones are handles to the same drain. The [module](super) describes the sequence.
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
    pub(super) state: Arc<State>,
    has_signals: Arc<AtomicBool>,
}

impl Drain {
    /// A drain that makes `health` unready (by the signal `drain`) when it begins.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with every option that can't be used. Outside of a Tokio runtime it is refused too, because the
    /// sequence runs there.
    pub fn new(health: &Health, options: DrainOptions) -> Result<Self, ConfigError> {
        let mut problems = options.problems();
        let runtime = Handle::try_current();
        if let Err(error) = &runtime {
            problems.push(Problem::new("drain", format!("needs a Tokio runtime: {error}")));
        }
        ConfigError::check(problems.clone())?;
        let Ok(runtime) = runtime else { return Err(ConfigError { problems }) };
        let readiness = health.signal("drain", Criticality::Critical);
        readiness.ok();
        Ok(Self { state: Arc::new(State::new(options, readiness, runtime)), has_signals: Arc::default() })
    }

    /// Begins the drain and returns at once. Further calls have no effect.
    pub fn begin(&self) {
        sequence::begin(&self.state);
    }

    /// Begins the drain, or continues the one that has begun, without waiting: requests and work that have not ended
    /// within 250 ms are cut, then the hooks run for at most [`DrainOptions::hook_time`]. Called while the hooks run,
    /// it drops those too.
    ///
    /// This is what a second SIGTERM or SIGINT does.
    pub fn cut_short(&self) {
        self.begin();
        self.state.cut_short();
    }

    /// Whether the drain has begun. Costs one atomic load.
    pub fn draining(&self) -> bool {
        self.state.stages.is_at(Stage::Propagating)
    }

    /// Waits for the beginning of the drain. For streams and loops that do not end by themselves.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn begun(&self) {
        self.state.stages.reached(Stage::Propagating).await;
    }

    /// Waits until [`DrainOptions::propagation`] has passed. From then on no new connection is accepted, and resources
    /// that the remaining requests do not need can be released.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn propagated(&self) {
        self.state.stages.reached(Stage::Closing).await;
    }

    /// Waits for the end of the drain and returns its report.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn finished(&self) -> DrainReport {
        self.state.stages.reached(Stage::Finished).await;
        self.state.report.get().cloned().unwrap_or_default()
    }

    /// Registers work beside requests (a pinned transaction, a job). The drain waits until the guard is dropped.
    pub fn work(&self, name: impl Into<Arc<str>>) -> WorkGuard {
        WorkGuard { id: self.state.registry.add_work(name.into()), state: Arc::clone(&self.state) }
    }

    /// Runs `hook` after requests and work have ended (or were cut) and before [`Drain::serve`] returns. The argument
    /// is the time that is left; the hook is dropped when it has passed.
    ///
    /// Hooks run concurrently, so that a slow one takes no time from the others. Steps that need an order belong in one
    /// hook. A hook that is added after the hooks were started is dropped with a warning.
    pub fn on_drain<F, Fut>(&self, name: impl Into<Arc<str>>, hook: F)
    where
        F: FnOnce(Duration) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let name = name.into();
        let mut hooks = self.state.hooks.lock().unwrap_or_else(PoisonError::into_inner);
        match hooks.as_mut() {
            Some(hooks) => hooks.push((name, Box::new(|left| Box::pin(hook(left))))),
            None => tracing::warn!(%name, "hook added after the drain's hooks were started; it does not run"),
        }
    }

    /// Begins the drain on the first SIGTERM or SIGINT. A second signal [cuts it short](Self::cut_short), and a third
    /// one drops the hooks. [`Drain::serve`] calls this.
    ///
    /// From then on these signals no longer terminate the process by themselves.
    ///
    /// # Errors
    ///
    /// The signal handlers can't be installed. A later call tries again.
    pub fn on_signals(&self) -> io::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        if self.has_signals.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let drain = self.clone();
        self.state.runtime.spawn(async move {
            let signal = next_signal(&mut terminate, &mut interrupt).await;
            tracing::info!(signal, "draining");
            drain.begin();
            loop {
                let signal = tokio::select! {
                    signal = next_signal(&mut terminate, &mut interrupt) => signal,
                    _ = drain.finished() => return,
                };
                tracing::warn!(signal, "another signal: ending the drain without waiting");
                drain.cut_short();
            }
        });
        Ok(())
    }

    /// `/drain` for a preStop hook: begins the drain and answers when propagation has passed. Repeated calls have no
    /// further effect.
    ///
    /// | request | |
    /// |---|---|
    /// | `POST` from 127.0.0.1, `::1` or a Unix socket | allowed: `preStop.exec` inside the container, or a person |
    /// | `POST` from elsewhere, with the header `x-cutover-drain-secret` | allowed if it is [`DrainOptions::secret`] |
    /// | `GET` with that header | the same: `preStop.httpGet` can send only this |
    /// | everything else, such as `GET` or `HEAD` without the header | refused |
    ///
    /// The peer's address is known where [`serve`](Self::serve) or [`serve_admin`](Self::serve_admin) serves the router.
    /// A proxy inside of the pod that connects from 127.0.0.1 counts as the same host.
    pub fn router(&self) -> Router {
        endpoint::router(Arc::clone(&self.state))
    }

    /// Serves HTTP/1 and HTTP/2 until the drain has ended, and returns its report.
    ///
    /// `app` is an axum `Router`, tonic's `Routes`, or any other [`App`]. Handlers find the peer's address as
    /// `ConnectInfo<SocketAddr>` (on a Unix listener, tokio's `unix::SocketAddr`). An error of `accept` (too many open
    /// files) pauses accepting and never ends it. May be called for several listeners, which share
    /// [`DrainOptions::max_connections`].
    ///
    /// # Errors
    ///
    /// The signal handlers can't be installed.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: dropped, it stops accepting at once. Open connections go on, and a drain still waits for them.
    pub async fn serve(&self, listener: impl Listen, app: impl App) -> io::Result<DrainReport> {
        self.serve_with(listener, |stream| ready(Ok(stream)), app).await
    }

    /// [`serve`](Self::serve) with a handshake at the beginning of each connection, such as TLS or a PROXY header.
    ///
    /// The handshake runs in the connection's own task, so a slow one delays no other connection. It may take 10
    /// seconds, and never longer than the drain's deadline. When it fails, the connection is dropped. For HTTP/2 the
    /// acceptor has to offer `h2` by ALPN.
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
        serve::public(Arc::clone(&self.state), listener, handshake, app).await;
        Ok(self.finished().await)
    }

    /// Serves the admin pages (health, metrics, [`Drain::router`]) until the drain has ended, so that probes and scrapes
    /// see all of it. The drain does not wait for these connections. At most 1,024 are served at a time, beside
    /// [`DrainOptions::max_connections`], so that a flood of requests does not hide the probes.
    ///
    /// # Errors
    ///
    /// The signal handlers can't be installed.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: dropped, it stops serving.
    pub async fn serve_admin(&self, listener: impl Listen, app: impl App) -> io::Result<()> {
        self.on_signals()?;
        serve::admin(Arc::clone(&self.state), listener, app).await;
        Ok(())
    }
}

async fn next_signal(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

impl fmt::Debug for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drain")
            .field("stage", &self.state.stages.current())
            .field("options", &self.state.options)
            .finish_non_exhaustive()
    }
}

/// Work that a drain waits for until this is dropped; from [`Drain::work`].
#[must_use = "the drain waits only while this is alive"]
pub struct WorkGuard {
    id: u64,
    state: Arc<State>,
}

impl Drop for WorkGuard {
    fn drop(&mut self) {
        self.state.registry.remove_work(self.id);
    }
}

impl fmt::Debug for WorkGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkGuard").field("id", &self.id).finish_non_exhaustive()
    }
}
