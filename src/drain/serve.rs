use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::task::coop::unconstrained;
use tokio::time::{Instant, sleep};

use super::app::App;
use super::connection;
use super::listen::Listen;
use super::stage::Stage;
use super::state::State;
use super::stream::Entry;

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Connections of an admin listener: a flood of them must not exhaust the process.
const ADMIN_CONNECTIONS: usize = 1024;
/// How often the warning about the limit of connections is repeated.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// A listener that may still add connections. The registry is not empty while one exists.
struct Listening(Arc<State>);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.registry.remove_listener();
    }
}

/// Accepts connections until propagation has passed. Each connection has a task of its own.
pub(super) async fn public<L, H, Fut, IO>(state: Arc<State>, listener: L, handshake: H, app: impl App)
where
    L: Listen,
    H: Fn(L::Stream) -> Fut,
    Fut: Future<Output = io::Result<IO>> + Send + 'static,
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    state.registry.add_listener();
    let listening = Listening(Arc::clone(&state));
    let server = connection::server(&state.options);
    let entries = Arc::clone(&state);
    let mut spawn = move |stream, peer: L::Peer, permit| {
        let entry = Entry::new(Arc::clone(&entries), format!("{peer:?}"), permit);
        let handshake = handshake(stream);
        tokio::spawn(connection::after(handshake, server.clone(), peer, app.clone(), entry));
    };
    accept_until(state.stages.reached(Stage::Closing), &listener, &state.connections, &mut spawn).await;
    // The kernel has completed handshakes of connections that were not accepted yet. Closing the listener would reset
    // them.
    while let Ok(permit) = Arc::clone(&state.connections).try_acquire_owned()
        && let Some(Ok((stream, peer))) = unconstrained(listener.accept()).now_or_never()
    {
        spawn(stream, peer, permit);
    }
    drop(listening);
}

/// Accepts connections until the drain has finished, then waits a moment for the last responses.
pub(super) async fn admin(state: Arc<State>, listener: impl Listen, app: impl App) {
    let server = connection::server(&state.options);
    let limit = Arc::new(Semaphore::new(ADMIN_CONNECTIONS));
    let mut connections = JoinSet::new();
    let spawn = |stream, peer, permit| {
        while connections.try_join_next().is_some() {}
        let state = Arc::clone(&state);
        connections.spawn(connection::admin(server.clone(), stream, peer, app.clone(), state, permit));
    };
    accept_until(state.stages.reached(Stage::Finished), &listener, &limit, spawn).await;
    while connections.join_next().await.is_some() {}
}

async fn accept_until<L: Listen>(
    end: impl Future<Output = ()>,
    listener: &L,
    limit: &Arc<Semaphore>,
    mut connected: impl FnMut(L::Stream, L::Peer, OwnedSemaphorePermit),
) {
    let mut end = pin!(end);
    let mut pause = FIRST_PAUSE;
    let mut warned = None;
    loop {
        let accepted = tokio::select! {
            biased;
            () = end.as_mut() => return,
            // Both are cancel safe, and a permit is given back when it is dropped.
            accepted = async { (place(limit, &mut warned).await, listener.accept().await) } => accepted,
        };
        match accepted {
            (Some(permit), Ok((stream, peer))) => {
                pause = FIRST_PAUSE;
                connected(stream, peer, permit);
            }
            (None, _) => return,
            (_, Err(error)) if is_of_one_connection(&error) => {}
            (_, Err(error)) => {
                tracing::warn!(%error, ?pause, "could not accept a connection; retrying");
                tokio::select! {
                    () = end.as_mut() => return,
                    () = sleep(pause) => {}
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

/// Waits for a place for one more connection. `None` only for a closed semaphore, which these never are.
async fn place(limit: &Arc<Semaphore>, warned: &mut Option<Instant>) -> Option<OwnedSemaphorePermit> {
    if let Ok(permit) = Arc::clone(limit).try_acquire_owned() {
        return Some(permit);
    }
    if warned.is_none_or(|warned| warned.elapsed() > WARN_EVERY) {
        *warned = Some(Instant::now());
        tracing::warn!("connection limit reached; new connections wait until others close");
    }
    Arc::clone(limit).acquire_owned().await.ok()
}

/// The peer left before it was accepted. Any other error (too many open files, no memory) concerns the whole process
/// and would occur again at once.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
    )
}
