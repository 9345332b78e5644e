use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{sleep, timeout};

use super::app::App;
use super::handle::{Inner, Stage};
use super::in_flight::{Tracked, call_app};
use super::registry::unused;
use super::watched::{Registered, Watched};

/// A connection that was accepted but never used may have its first request on the way.
const FIRST_REQUEST: Duration = Duration::from_secs(1);
/// For the last answers of the admin listener.
const GOODBYE: Duration = Duration::from_millis(250);
/// An HTTP/2 peer that is gone without a word is noticed after this, and as long again.
const HTTP2_PING: Duration = Duration::from_secs(30);
/// For a handshake (TLS) to come to its end.
const HANDSHAKE: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub(super) struct Server {
    builder: Builder<TokioExecutor>,
    /// For the first request too: hyper's own limit begins when the first bytes have told which version it is.
    head_timeout: Duration,
}

pub(super) fn server(head_timeout: Duration) -> Server {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(head_timeout);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(HTTP2_PING).keep_alive_timeout(HTTP2_PING);
    Server { builder, head_timeout }
}

/// [`public`] for a connection that begins with a handshake.
pub(super) async fn after<IO, P, S>(
    handshake: impl Future<Output = io::Result<IO>>,
    server: Server,
    peer: P,
    app: S,
    registered: Registered,
) where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    P: Clone + Send + Sync + 'static,
    S: App,
{
    let stream = tokio::select! {
        biased;
        done = timeout(HANDSHAKE, handshake) => match done {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%error, "handshake failed"),
            Err(_) => return tracing::debug!("no handshake within {HANDSHAKE:?}"),
        },
        () = registered.connection.reached(&registered.inner, Stage::Forced) => return,
    };
    public(server, stream, peer, app, registered).await;
}

/// Serves one connection through all stages of a drain.
///
/// The connection is always polled before the stage is looked at, so that a request that has
/// arrived is taken up before an idle connection is closed.
async fn public<IO, P, S>(server: Server, stream: IO, peer: P, app: S, registered: Registered)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    P: Clone + Send + Sync + 'static,
    S: App,
{
    let inner = &Arc::clone(&registered.inner);
    let connection = &Arc::clone(&registered.connection);
    let opened_before = !inner.is_at(Stage::Propagating);
    let service = Tracked { app, peer, inner: Arc::clone(inner), connection: Arc::clone(connection) };
    let stream = TokioIo::new(Watched { stream, registered });
    let mut served = pin!(server.builder.serve_connection_with_upgrades(stream, service));

    tokio::select! {
        biased;
        _ = served.as_mut() => return,
        () = connection.reached(inner, Stage::Propagating) => {}
        () = connection.unused(server.head_timeout) => return,
    }
    // HTTP/1 is told by the header of its next response. HTTP/2 has no such header, and a
    // GOAWAY loses nothing: requests that cross it are still served. A connection that came
    // later is let be, or its client would come back again and again.
    if opened_before && connection.is_http2() {
        served.as_mut().graceful_shutdown();
    }

    tokio::select! {
        biased;
        _ = served.as_mut() => return,
        () = connection.reached(inner, Stage::Closing) => {}
    }
    tokio::select! {
        biased;
        _ = served.as_mut() => return,
        () = connection.used(FIRST_REQUEST) => {}
        () = connection.reached(inner, Stage::Forced) => return,
    }
    served.as_mut().graceful_shutdown();

    tokio::select! {
        biased;
        _ = served => {}
        () = connection.reached(inner, Stage::Forced) => {}
    }
}

/// Serves one connection of the admin listener, to the end of the drain.
pub(super) async fn admin<IO, P, S>(server: Server, stream: IO, peer: P, app: S, inner: Arc<Inner>)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    P: Clone + Send + Sync + 'static,
    S: App,
{
    let is_used = Arc::new(AtomicBool::new(false));
    let was_used = Arc::clone(&is_used);
    let service = service_fn(move |request: http::Request<Incoming>| {
        is_used.store(true, Ordering::Relaxed);
        call_app(&app, request, peer.clone())
    });
    let mut served = pin!(server.builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    tokio::select! {
        biased;
        _ = served.as_mut() => return,
        () = inner.reached(Stage::Finished) => {}
        () = unused(server.head_timeout, || was_used.load(Ordering::Relaxed)) => return,
    }
    served.as_mut().graceful_shutdown();
    tokio::select! {
        biased;
        _ = served => {}
        () = sleep(GOODBYE) => {}
    }
}
