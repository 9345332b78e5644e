use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::task::coop::unconstrained;
use tokio::time::sleep;

use super::app::App;
use super::connection;
use super::handle::{Inner, Stage};
use super::listen::Listen;
use super::watched::Registered;

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A listener that may still add connections. The drain can't call the registry empty
/// before it has said that it won't.
struct Listening(Arc<Inner>);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.registry.remove_listener();
    }
}

/// Accepts until propagation has passed. Connections have tasks of their own.
pub(super) async fn public<L, H, Fut, IO>(inner: Arc<Inner>, listener: L, handshake: H, app: impl App)
where
    L: Listen,
    H: Fn(L::Stream) -> Fut,
    Fut: Future<Output = io::Result<IO>> + Send + 'static,
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    inner.registry.add_listener();
    let listening = Listening(Arc::clone(&inner));
    let server = connection::server(inner.options.head_timeout);
    let closing = Arc::clone(&inner);
    let mut spawn = move |stream, peer: L::Peer| {
        let registered = Registered::new(Arc::clone(&inner), format!("{peer:?}"));
        let shaking = handshake(stream);
        tokio::spawn(connection::after(shaking, server.clone(), peer, app.clone(), registered));
    };
    accept_until(closing.reached(Stage::Closing), &listener, &mut spawn).await;
    // The kernel has finished handshakes that nobody accepted yet. Closing the listener
    // would reset them.
    while let Some(Ok((stream, peer))) = unconstrained(listener.accept()).now_or_never() {
        spawn(stream, peer);
    }
    drop(listening);
}

/// Accepts until the drain has finished, then gives the last answers a moment.
pub(super) async fn admin(inner: Arc<Inner>, listener: impl Listen, app: impl App) {
    let server = connection::server(inner.options.head_timeout);
    let mut connections = JoinSet::new();
    let finished = Arc::clone(&inner);
    let spawn = |stream, peer| {
        while connections.try_join_next().is_some() {}
        connections.spawn(connection::admin(server.clone(), stream, peer, app.clone(), Arc::clone(&inner)));
    };
    accept_until(finished.reached(Stage::Finished), &listener, spawn).await;
    while connections.join_next().await.is_some() {}
}

async fn accept_until<L: Listen>(
    end: impl Future<Output = ()>,
    listener: &L,
    mut connected: impl FnMut(L::Stream, L::Peer),
) {
    let mut end = pin!(end);
    let mut pause = FIRST_PAUSE;
    loop {
        let accepted = tokio::select! {
            biased;
            () = end.as_mut() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                pause = FIRST_PAUSE;
                connected(stream, peer);
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, ?pause, "can't accept; trying again");
                tokio::select! {
                    () = end.as_mut() => return,
                    () = sleep(pause) => {}
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

/// The peer left before it was accepted. All else (too many open files, no memory) is the
/// process's trouble and would fail again at once.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
    )
}
