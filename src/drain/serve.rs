use std::{io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::Router;
use futures_util::FutureExt;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinSet, coop::unconstrained},
    time::sleep,
};

use super::{
    connection::{self, Registered},
    handle::{Inner, Stage},
};

type Accepted = io::Result<(TcpStream, SocketAddr)>;

/// A listener. Tests have one that fails.
pub(super) trait Accept: Send + Sync {
    /// Cancel safe: a connection is either returned or left for the next call.
    fn accept(&self) -> impl Future<Output = Accepted> + Send;
}

impl Accept for TcpListener {
    fn accept(&self) -> impl Future<Output = Accepted> + Send {
        TcpListener::accept(self)
    }
}

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
pub(super) async fn public(inner: Arc<Inner>, listener: impl Accept, app: Router) {
    inner.registry.add_listener();
    let listening = Listening(Arc::clone(&inner));
    let server = connection::server(inner.options.head_timeout);
    let spawn = |stream, peer| {
        let registered = Registered::new(Arc::clone(&inner), peer);
        let serving = connection::public(server.clone(), stream, app.clone(), registered);
        tokio::spawn(serving);
    };
    accept_until(inner.reached(Stage::Closing), &listener, spawn).await;
    // The kernel has finished handshakes that nobody accepted yet. Closing the listener
    // would reset them.
    while let Some(Ok((stream, peer))) = unconstrained(listener.accept()).now_or_never() {
        spawn(stream, peer);
    }
    drop(listening);
}

/// Accepts until the drain has finished, then gives the last answers a moment.
pub(super) async fn admin(inner: Arc<Inner>, listener: impl Accept, app: Router) {
    let server = connection::server(inner.options.head_timeout);
    let mut connections = JoinSet::new();
    accept_until(inner.reached(Stage::Finished), &listener, |stream, peer| {
        while connections.try_join_next().is_some() {}
        let inner = Arc::clone(&inner);
        connections.spawn(connection::admin(server.clone(), stream, app.clone(), inner, peer));
    })
    .await;
    while connections.join_next().await.is_some() {}
}

async fn accept_until(
    end: impl Future<Output = ()>,
    listener: &impl Accept,
    mut connected: impl FnMut(TcpStream, SocketAddr),
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
                // Answers are small and wait for nothing; failing to say so costs only time.
                let _ = stream.set_nodelay(true);
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
