use std::{net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::Router;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use tokio::{net::TcpStream, time::sleep};

use super::{
    handle::{Inner, Stage},
    in_flight::{Tracked, call_app},
    registry::Connection,
};

/// A connection that was accepted but never used may have its first request on the way.
const FIRST_REQUEST: Duration = Duration::from_secs(1);
/// For the last answers of the admin listener.
const GOODBYE: Duration = Duration::from_millis(250);
/// An HTTP/2 peer that is gone without a word is noticed after this, and as long again.
const HTTP2_PING: Duration = Duration::from_secs(30);

pub(super) type Server = Builder<TokioExecutor>;

pub(super) fn server(head_timeout: Duration) -> Server {
    let mut server = Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(head_timeout);
    server.http2().timer(TokioTimer::new()).keep_alive_interval(HTTP2_PING).keep_alive_timeout(HTTP2_PING);
    server
}

/// An entry in the registry, for as long as the connection's task lives.
pub(super) struct Registered {
    inner: Arc<Inner>,
    id: u64,
    connection: Arc<Connection>,
}

impl Registered {
    pub(super) fn new(inner: Arc<Inner>, peer: SocketAddr) -> Self {
        let (id, connection) = inner.registry.add_connection(peer);
        Self { inner, id, connection }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.inner.registry.remove_connection(self.id);
    }
}

/// Serves one connection through all stages of a drain.
///
/// The connection is always polled before the stage is looked at, so that a request that has
/// arrived is taken up before an idle connection is closed.
pub(super) async fn public(server: Server, stream: TcpStream, app: Router, registered: Registered) {
    let inner = &registered.inner;
    let connection = &registered.connection;
    let opened_before = !inner.is_at(Stage::Propagating);
    let service = Tracked { app, inner: Arc::clone(inner), connection: Arc::clone(connection) };
    let mut served = pin!(server.serve_connection_with_upgrades(TokioIo::new(stream), service));

    tokio::select! {
        biased;
        _ = served.as_mut() => return,
        () = connection.reached(inner, Stage::Propagating) => {}
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
pub(super) async fn admin(
    server: Server,
    stream: TcpStream,
    app: Router,
    inner: Arc<Inner>,
    peer: SocketAddr,
) {
    let service = service_fn(|request: http::Request<Incoming>| call_app(&app, request, peer));
    let mut served = pin!(server.serve_connection_with_upgrades(TokioIo::new(stream), service));
    tokio::select! {
        biased;
        _ = served.as_mut() => return,
        () = inner.reached(Stage::Finished) => {}
    }
    served.as_mut().graceful_shutdown();
    tokio::select! {
        biased;
        _ = served => {}
        () = sleep(GOODBYE) => {}
    }
}
