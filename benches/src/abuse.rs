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
use tonic::transport::server::{Server, TcpIncoming};

use super::counted;
use super::table::Table;

/// Longer than the drain's deadline; what has not ended by then counts as never.
const LIMIT: Duration = Duration::from_secs(5);
const EARLY: u32 = 20;

/// Who serves the same routes.
#[derive(Clone, Copy)]
enum Who {
    Axum,
    Tonic,
    Drain,
}

/// What is done to it before it is told to end.
#[derive(Clone, Copy)]
enum Abuse {
    Nothing,
    HalfHead,
    MuteHttp2,
    EventStream,
    Panics,
    ClientsGone,
}

const ABUSES: [Abuse; 6] = [
    Abuse::Nothing,
    Abuse::HalfHead,
    Abuse::MuteHttp2,
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

#[expect(clippy::panic, reason = "that is what it is for")]
async fn panics() -> &'static str {
    panic!("asked to")
}

struct Serving {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<()>>,
}

async fn start(who: Who) -> Result<Serving> {
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
        match who {
            Who::Axum => axum::serve(listener, app()).with_graceful_shutdown(stopped).await?,
            Who::Tonic => {
                let server = Server::builder().accept_http1(true).add_routes(Routes::from(app()));
                server.serve_with_incoming_shutdown(TcpIncoming::from(listener), stopped).await?;
            }
            Who::Drain => {
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

async fn sent(address: SocketAddr, bytes: &[u8]) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(bytes).await?;
    Ok(stream)
}

pub(crate) async fn asked(address: SocketAddr, path: &str) -> std::io::Result<TcpStream> {
    sent(address, format!("GET {path} HTTP/1.1\r\nhost: t\r\n\r\n").as_bytes()).await
}

/// What is returned has to be kept open.
async fn abuse(abuse: Abuse, address: SocketAddr) -> Result<Vec<TcpStream>> {
    let mut kept = Vec::new();
    match abuse {
        Abuse::Nothing => {}
        Abuse::HalfHead => kept.push(sent(address, b"GET / HTTP/1.1\r\nhost: t").await?),
        Abuse::MuteHttp2 => {
            let mut mute = sent(address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
            mute.read_u8().await?;
            kept.push(mute);
        }
        Abuse::EventStream => {
            let mut events = asked(address, "/events").await?;
            events.read_u8().await?;
            kept.push(events);
        }
        Abuse::Panics => {
            for _ in 0..10 {
                // It hangs up instead of answering.
                let _ = asked(address, "/panic").await?.read(&mut [0; 64]).await;
            }
        }
        Abuse::ClientsGone => {
            for _ in 0..10 {
                drop(asked(address, "/slow").await?);
            }
        }
    }
    // One round trip more, so that all of it has arrived.
    asked(address, "/").await?.read_u8().await?;
    Ok(kept)
}

/// Seconds from the signal to the end.
async fn ends_in(who: Who, how: Abuse) -> Result<f64> {
    let serving = start(who).await?;
    let kept = abuse(how, serving.address).await?;
    let began = Instant::now();
    let _ = serving.stop.send(());
    let ended = timeout(LIMIT, serving.task).await;
    drop(kept);
    Ok(if ended.is_ok() { began.elapsed().as_secs_f64() } else { f64::NAN })
}

/// How many of those fail that connect shortly after the signal, as a proxy does that has not heard yet.
async fn early_refused(who: Who) -> Result<f64> {
    let serving = start(who).await?;
    asked(serving.address, "/").await?.read_u8().await?;
    let _ = serving.stop.send(());
    let mut failed = 0_u32;
    for _ in 0..EARLY {
        sleep(Duration::from_millis(10)).await;
        let answered = async { asked(serving.address, "/").await?.read_u8().await };
        failed += u32::from(answered.await.is_err());
    }
    Ok(f64::from(failed))
}

pub(crate) async fn run() -> Result<()> {
    let mut table = Table::new(
        "Told to end while it is abused: seconds until it has (– is not within 5 s); requests refused of 20 that \
         come in the first moments after the signal. The drain goes on accepting for 0.5 s; its deadline is 2.7 s.",
        &["nothing", "half head", "mute HTTP/2", "event stream", "10 panics", "10 gone", "early refused"],
    );
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    for (name, who) in [
        ("axum's graceful shutdown", Who::Axum),
        ("tonic's serve_with_shutdown", Who::Tonic),
        ("drain", Who::Drain),
    ] {
        let mut numbers = Vec::new();
        for how in ABUSES {
            numbers.push(ends_in(who, how).await?);
        }
        numbers.push(early_refused(who).await?);
        table.row(name, numbers);
    }
    table.publish("abuse")?;
    let counted = counted::run().await;
    std::panic::set_hook(quiet);
    counted
}
