use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{sleep, timeout};

use super::DrainOptions;
use super::app::App;
use super::refusal::Refusal;
use super::registry::Connection;
use super::request::{InFlight, Tracked, call_app};
use super::stage::Stage;
use super::state::State;
use super::stream::{ClientEnd, ConnectionStream, Entry, HeadTimer};

/// How long a drain waits for the first request of a connection that was accepted just before.
const FIRST_REQUEST: Duration = Duration::from_secs(1);
/// How long the admin listener waits for its last responses.
const LAST_RESPONSES: Duration = Duration::from_millis(250);
/// How long an HTTP/2 connection may be silent before it is pinged, and how long the answer may take.
const HTTP2_PING: Duration = Duration::from_secs(30);
/// How long a handshake (TLS) may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// The HTTP server of every connection of a listener.
#[derive(Clone)]
pub(super) struct Server {
    builder: Builder<TokioExecutor>,
    /// hyper's own limit begins when the first bytes have shown the version of HTTP.
    head_timeout: Duration,
    half_closed_timeout: Duration,
}

pub(super) fn server(options: &DrainOptions) -> Server {
    let mut builder = Builder::new(TokioExecutor::new());
    // hyper counts the idle time before a head in this limit. `HeadTimer` limits the head itself.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(options.idle_timeout);
    // WebSocket over HTTP/2 (RFC 8441) begins with an extended CONNECT.
    builder.http2().enable_connect_protocol();
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(HTTP2_PING).keep_alive_timeout(HTTP2_PING);
    let DrainOptions { head_timeout, half_closed_timeout, .. } = *options;
    Server { builder, head_timeout, half_closed_timeout }
}

impl Server {
    /// The bytes of a connection, under its time limits.
    fn watched<IO>(
        &self,
        stream: IO,
        connection: &Arc<Connection>,
        entry: Option<Entry>,
    ) -> TokioIo<ConnectionStream<IO>> {
        let head = HeadTimer::new(Arc::clone(connection), self.head_timeout);
        let end = ClientEnd::new(self.half_closed_timeout);
        TokioIo::new(ConnectionStream { stream, head, end, entry })
    }
}

/// [`public`] for a connection that begins with a handshake.
pub(super) async fn after<IO, P, S>(
    handshake: impl Future<Output = io::Result<IO>>,
    server: Server,
    peer: P,
    app: S,
    entry: Entry,
) where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    P: Clone + Send + Sync + 'static,
    S: App,
{
    let stream = tokio::select! {
        biased;
        done = timeout(HANDSHAKE, handshake) => match done {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                entry.state.refusals.add(Refusal::Handshake);
                return tracing::debug!(%error, "handshake failed");
            }
            Err(_) => {
                entry.state.refusals.add(Refusal::Handshake);
                return tracing::debug!(limit = ?HANDSHAKE, "handshake timed out");
            }
        },
        () = entry.connection.reached(&entry.state.stages, Stage::Forced) => return,
    };
    public(server, stream, peer, app, entry).await;
}

/// Serves one connection through all stages of a drain.
///
/// The connection is always polled before the stage is checked, so that a request that has arrived is served before an
/// idle connection is closed.
async fn public<IO, P, S>(server: Server, stream: IO, peer: P, app: S, entry: Entry)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    P: Clone + Send + Sync + 'static,
    S: App,
{
    let state = &Arc::clone(&entry.state);
    let connection = &Arc::clone(&entry.connection);
    let stages = &state.stages;
    let opened_before = !stages.is_at(Stage::Propagating);
    let service = Tracked { app, peer, state: Arc::clone(state), connection: Arc::clone(connection) };
    let stream = server.watched(stream, connection, Some(entry));
    let mut served = pin!(server.builder.serve_connection_with_upgrades(stream, service));

    tokio::select! {
        biased;
        ended = served.as_mut() => return state.refusals.ended(&ended),
        () = connection.reached(stages, Stage::Propagating) => {}
        () = connection.unused(server.head_timeout) => return,
    }
    // HTTP/1 learns of the drain by a header of its next response. HTTP/2 has no such header, and a GOAWAY loses
    // nothing: requests that cross it are still served. A connection that was opened during the drain gets no GOAWAY,
    // or its client would connect again and again.
    if opened_before && connection.is_http2() {
        served.as_mut().graceful_shutdown();
    }

    tokio::select! {
        biased;
        ended = served.as_mut() => return state.refusals.ended(&ended),
        () = connection.reached(stages, Stage::Closing) => {}
    }
    tokio::select! {
        biased;
        ended = served.as_mut() => return state.refusals.ended(&ended),
        () = connection.used(FIRST_REQUEST) => {}
        () = connection.reached(stages, Stage::Forced) => return,
    }
    served.as_mut().graceful_shutdown();

    tokio::select! {
        biased;
        ended = served => state.refusals.ended(&ended),
        () = connection.reached(stages, Stage::Forced) => {}
    }
}

/// Serves one connection of the admin listener, until the drain has ended.
pub(super) async fn admin<IO, P, S>(
    server: Server,
    stream: IO,
    peer: P,
    app: S,
    state: Arc<State>,
    _permit: OwnedSemaphorePermit,
) where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    P: Clone + Send + Sync + 'static,
    S: App,
{
    let connection = Arc::new(Connection::new(String::new()));
    let requests = Arc::clone(&connection);
    let service = service_fn(move |request: http::Request<Incoming>| {
        let in_flight = InFlight::new(Arc::clone(&requests), &request);
        let response = call_app(&app, request, peer.clone());
        async move {
            let _in_flight = in_flight;
            response.await
        }
    });
    let stream = server.watched(stream, &connection, None);
    let mut served = pin!(server.builder.serve_connection_with_upgrades(stream, service));
    tokio::select! {
        biased;
        _ = served.as_mut() => return,
        () = state.stages.reached(Stage::Finished) => {}
        () = connection.unused(server.head_timeout) => return,
    }
    served.as_mut().graceful_shutdown();
    tokio::select! {
        biased;
        _ = served => {}
        () = sleep(LAST_RESPONSES) => {}
    }
}
