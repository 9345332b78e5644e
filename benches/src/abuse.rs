use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::routing::get;
use cutover::drain::{Drain, DrainOptions};
use cutover::health::Health;
use futures_util::{StreamExt, stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tonic::service::Routes;
use tonic::transport::server::{Server as TonicServer, TcpIncoming};

use super::counted;
use super::table::Table;

/// Longer than the drain's deadline. A server that has not stopped by then counts as never.
const LIMIT: Duration = Duration::from_secs(5);
const EARLY: u32 = 20;

/// The servers that are compared. All serve the same routes.
#[derive(Clone, Copy)]
enum Server {
    Axum,
    Tonic,
    Drain,
}

/// What happens to a server before it is told to stop.
#[derive(Clone, Copy)]
enum Abuse {
    Nothing,
    HalfHead,
    UnresponsiveHttp2,
    EventStream,
    Panics,
    ClientsGone,
}

const ABUSES: [Abuse; 6] = [
    Abuse::Nothing,
    Abuse::HalfHead,
    Abuse::UnresponsiveHttp2,
    Abuse::EventStream,
    Abuse::Panics,
    Abuse::ClientsGone,
];

pub(crate) fn app() -> Router {
    let events = || async {
        let first = stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"data: 1\n\n"))]);
        ([("content-type", "text/event-stream")], Body::from_stream(first.chain(stream::pending())))
    };
    let torn = || async {
        let parts = [Ok(Bytes::from_static(b"half")), Err(std::io::Error::other("torn"))];
        Body::from_stream(stream::iter(parts))
    };
    Router::new()
        .route("/", get(|| async { "hello" }))
        .route("/torn", get(torn))
        .route("/events", get(events))
        .route("/slow", get(|| async { sleep(Duration::from_secs(1)).await }))
        .route("/panic", get(panics))
}

#[expect(clippy::panic, reason = "the route exists to panic")]
async fn panics() -> &'static str {
    panic!("this route panics")
}

struct Serving {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<()>>,
}

async fn start(server: Server) -> Result<Serving> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (stop, stopped) = oneshot::channel();
    let stopped = async move {
        let _ = stopped.await;
    };
    let options = DrainOptions {
        grace: Duration::from_secs(3),
        propagation: Duration::from_millis(500),
        hook_time: Duration::from_millis(200),
        margin: Duration::from_millis(100),
        ..DrainOptions::default()
    };
    let drain = Drain::new(&Health::new(), options)?;
    let task = tokio::spawn(async move {
        match server {
            Server::Axum => axum::serve(listener, app()).with_graceful_shutdown(stopped).await?,
            Server::Tonic => {
                let routes = TonicServer::builder().accept_http1(true).add_routes(Routes::from(app()));
                routes.serve_with_incoming_shutdown(TcpIncoming::from(listener), stopped).await?;
            }
            Server::Drain => {
                let begins = drain.clone();
                tokio::spawn(async move {
                    stopped.await;
                    begins.begin();
                });
                drain.serve(listener, app()).await?;
            }
        }
        Ok(())
    });
    Ok(Serving { address, stop, task })
}

async fn send(address: SocketAddr, bytes: &[u8]) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(bytes).await?;
    Ok(stream)
}

pub(crate) async fn request(address: SocketAddr, path: &str) -> std::io::Result<TcpStream> {
    send(address, format!("GET {path} HTTP/1.1\r\nhost: t\r\n\r\n").as_bytes()).await
}

/// Returns connections that have to stay open.
async fn abuse(kind: Abuse, address: SocketAddr) -> Result<Vec<TcpStream>> {
    let mut kept = Vec::new();
    match kind {
        Abuse::Nothing => {}
        Abuse::HalfHead => kept.push(send(address, b"GET / HTTP/1.1\r\nhost: t").await?),
        Abuse::UnresponsiveHttp2 => {
            let mut client = send(address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
            client.read_u8().await?;
            kept.push(client);
        }
        Abuse::EventStream => {
            let mut events = request(address, "/events").await?;
            events.read_u8().await?;
            kept.push(events);
        }
        Abuse::Panics => {
            for _ in 0..10 {
                // The server closes the connection instead of answering.
                let _ = request(address, "/panic").await?.read(&mut [0; 64]).await;
            }
        }
        Abuse::ClientsGone => {
            for _ in 0..10 {
                drop(request(address, "/slow").await?);
            }
        }
    }
    // One more round trip, so that everything before it has arrived.
    request(address, "/").await?.read_u8().await?;
    Ok(kept)
}

/// Seconds from the signal until the server has stopped; NaN if it does not stop in time.
async fn seconds_to_stop(server: Server, kind: Abuse) -> Result<f64> {
    let serving = start(server).await?;
    let kept = abuse(kind, serving.address).await?;
    let began = Instant::now();
    let _ = serving.stop.send(());
    let ended = timeout(LIMIT, serving.task).await;
    drop(kept);
    Ok(if ended.is_ok() { began.elapsed().as_secs_f64() } else { f64::NAN })
}

/// How many requests fail that connect shortly after the signal, as those of a proxy that has not noticed yet.
async fn refused_early(server: Server) -> Result<f64> {
    let serving = start(server).await?;
    request(serving.address, "/").await?.read_u8().await?;
    let _ = serving.stop.send(());
    let mut failed = 0_u32;
    for _ in 0..EARLY {
        sleep(Duration::from_millis(10)).await;
        let answered = async { request(serving.address, "/").await?.read_u8().await };
        failed += u32::from(answered.await.is_err());
    }
    Ok(f64::from(failed))
}

pub(crate) async fn run() -> Result<()> {
    let mut table = Table::new(
        "Graceful shutdown with bad clients: seconds until the server stops (–: not within 5 s), and requests refused of \
         20 that arrive just after the signal. The drain accepts for another 0.5 s; its deadline is 2.7 s.",
        &["none", "half head", "silent HTTP/2", "event stream", "10 panics", "10 gone", "refused"],
    );
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    for (name, server) in [
        ("axum's graceful shutdown", Server::Axum),
        ("tonic's serve_with_shutdown", Server::Tonic),
        ("drain", Server::Drain),
    ] {
        let mut numbers = Vec::new();
        for kind in ABUSES {
            numbers.push(seconds_to_stop(server, kind).await?);
        }
        numbers.push(refused_early(server).await?);
        table.row(name, numbers);
    }
    table.publish("abuse")?;
    let counted = counted::run().await;
    std::panic::set_hook(quiet);
    counted
}
