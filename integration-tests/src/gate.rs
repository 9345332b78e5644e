//! A TCP proxy that can lose its way: what a network does to a connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::KitError;

#[derive(Clone, Copy, Debug, PartialEq)]
struct State {
    is_open: bool,
    /// Connections from before the last loss never carry anything again.
    losses: u64,
    /// Connections from before the last cut are closed.
    cuts: u64,
    /// Each piece arrives this much later.
    delay: Duration,
}

/// Stands on a loopback port of its own before a server on another one. Gone when dropped.
#[derive(Debug)]
pub struct Gate {
    port: u16,
    upstream: Arc<AtomicU16>,
    state: watch::Sender<State>,
    _tasks: JoinSet<()>,
}

impl Gate {
    /// Leads to this port of 127.0.0.1.
    ///
    /// # Errors
    ///
    /// [`KitError::Io`] when no port can be had.
    pub fn start(upstream: u16) -> Result<Self, KitError> {
        let doing = KitError::io("listen on a free port");
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .and_then(TcpListener::from_std)
            .and_then(|listener| Ok((listener.local_addr()?.port(), listener)));
        let (port, listener) = listener.map_err(doing)?;
        let upstream = Arc::new(AtomicU16::new(upstream));
        let state = watch::Sender::new(State { is_open: true, losses: 0, cuts: 0, delay: Duration::ZERO });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, upstream.clone(), state.clone()));
        Ok(Self { port, upstream, state, _tasks: tasks })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Holds everything back; what was held back arrives when it is opened again.
    pub fn hold(&self) {
        self.state.send_modify(|state| state.is_open = false);
    }

    /// Swallows everything; the connections of before stay up and never carry anything again.
    pub fn lose(&self) {
        self.state.send_modify(|state| {
            state.is_open = false;
            state.losses += 1;
        });
    }

    /// Closes the connections of before.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    /// Ends a [`hold`](Self::hold) or a [`lose`](Self::lose).
    pub fn open(&self) {
        self.state.send_modify(|state| state.is_open = true);
    }

    /// From now on each piece arrives this much later.
    pub fn slow(&self, delay: Duration) {
        self.state.send_modify(|state| state.delay = delay);
    }

    /// Where new connections go from now on.
    pub fn lead_to(&self, upstream: u16) {
        self.upstream.store(upstream, Ordering::SeqCst);
    }
}

async fn accept(listener: TcpListener, upstream: Arc<AtomicU16>, state: watch::Sender<State>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let (upstream, mut state) = (upstream.clone(), state.subscribe());
        connections.spawn(async move {
            let State { losses, cuts, .. } = *state.borrow();
            let mut cut = state.clone();
            tokio::select! {
                () = connect(client, &upstream, &mut state, losses) => {}
                _ = cut.wait_for(|state| state.cuts > cuts) => {}
            }
        });
    }
}

async fn connect(client: TcpStream, upstream: &AtomicU16, state: &mut watch::Receiver<State>, born: u64) {
    let _ = state.wait_for(|state| state.is_open).await;
    let Ok(server) = TcpStream::connect(("127.0.0.1", upstream.load(Ordering::SeqCst))).await else {
        return;
    };
    let (_, _) = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::join!(
        carry(from_client, to_server, state.clone(), born),
        carry(from_server, to_client, state.clone(), born)
    );
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
        let Ok(now) = state.wait_for(|state| state.is_open || state.losses > born).await.map(|state| *state)
        else {
            return;
        };
        if now.losses > born {
            std::future::pending::<()>().await;
        }
        if !now.delay.is_zero() {
            tokio::time::sleep(now.delay).await;
        }
        if read == 0 || to.write_all(&buffer[..read]).await.is_err() {
            let _ = to.shutdown().await;
            return;
        }
    }
}
