//! A TCP proxy between an instance and its Postgres that can lose its way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Outcome;

#[derive(Clone, Copy, PartialEq)]
struct State {
    is_open: bool,
    /// Connections from before the last loss never carry anything again.
    losses: u64,
}

pub(crate) struct Proxy {
    port: u16,
    upstream: Arc<AtomicU16>,
    state: watch::Sender<State>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    pub(crate) async fn start(upstream: u16) -> Outcome<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let upstream = Arc::new(AtomicU16::new(upstream));
        let state = watch::Sender::new(State { is_open: true, losses: 0 });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, upstream.clone(), state.clone()));
        Ok(Self { port, upstream, state, _tasks: tasks })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Holds everything back; what was held back arrives when it is opened again.
    pub(crate) fn delay(&self) {
        self.state.send_modify(|state| state.is_open = false);
    }

    /// Swallows everything; the connections of before stay up and never carry anything again.
    pub(crate) fn lose(&self) {
        self.state.send_modify(|state| *state = State { is_open: false, losses: state.losses + 1 });
    }

    pub(crate) fn open(&self) {
        self.state.send_modify(|state| state.is_open = true);
    }

    /// Where new connections go from now on.
    pub(crate) fn lead_to(&self, upstream: u16) {
        self.upstream.store(upstream, Ordering::SeqCst);
    }
}

async fn accept(listener: TcpListener, upstream: Arc<AtomicU16>, state: watch::Sender<State>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let (upstream, state) = (upstream.clone(), state.subscribe());
        connections.spawn(async move {
            let born = state.borrow().losses;
            let mut opened = state.clone();
            let _ = opened.wait_for(|state| state.is_open).await;
            let Ok(server) = TcpStream::connect(("127.0.0.1", upstream.load(Ordering::SeqCst))).await else {
                return;
            };
            let (_, _) = (client.set_nodelay(true), server.set_nodelay(true));
            let ((from_client, to_client), (from_server, to_server)) =
                (client.into_split(), server.into_split());
            tokio::join!(
                carry(from_client, to_server, state.clone(), born),
                carry(from_server, to_client, state, born)
            );
        });
    }
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut state: watch::Receiver<State>,
    born: u64,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        // Also the news of an end is held back.
        if state.wait_for(|state| state.is_open || state.losses > born).await.is_err() {
            return;
        }
        if state.borrow().losses > born {
            std::future::pending::<()>().await;
        }
        if read == 0 || to.write_all(&buffer[..read]).await.is_err() {
            let _ = to.shutdown().await;
            return;
        }
    }
}
