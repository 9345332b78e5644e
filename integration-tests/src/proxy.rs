//! A TCP proxy that injects network faults (stalls, lost packets, closed connections, delay) and counts round trips.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
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
    /// Number of calls of [`Proxy::lose`]. A connection that is older than the last call stays silent.
    losses: u64,
    /// Number of calls of [`Proxy::cut`]. A connection that is older than the last call is closed.
    cuts: u64,
    /// Delay of each chunk of data.
    delay: Duration,
}

/// A proxy on a free loopback port in front of a server on another loopback port. Dropping it closes it
/// and all of its connections.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    upstream: Arc<AtomicU16>,
    state: watch::Sender<State>,
    round_trips: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Starts a proxy that forwards to port `upstream` of 127.0.0.1.
    ///
    /// # Errors
    ///
    /// [`KitError::Io`] if it cannot listen.
    pub fn start(upstream: u16) -> Result<Self, KitError> {
        let doing = KitError::io("listen on a free port");
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .and_then(TcpListener::from_std)
            .and_then(|listener| Ok((listener.local_addr()?.port(), listener)));
        let (port, listener) = listener.map_err(doing)?;
        let upstream = Arc::new(AtomicU16::new(upstream));
        let state = watch::Sender::new(State { is_open: true, losses: 0, cuts: 0, delay: Duration::ZERO });
        let (mut tasks, round_trips) = (JoinSet::new(), Arc::default());
        tasks.spawn(accept(listener, upstream.clone(), state.clone(), Arc::clone(&round_trips)));
        Ok(Self { port, upstream, state, round_trips, _tasks: tasks })
    }

    /// The port that it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Stalls all connections. Data that arrives meanwhile is delivered after [`open`](Self::open).
    pub fn hold(&self) {
        self.state.send_modify(|state| state.is_open = false);
    }

    /// Drops all data. The connections that exist now stay established but carry nothing any more, even after
    /// [`open`](Self::open).
    pub fn lose(&self) {
        self.state.send_modify(|state| {
            state.is_open = false;
            state.losses += 1;
        });
    }

    /// Closes the connections that exist now.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    /// Ends a [`hold`](Self::hold) or a [`lose`](Self::lose).
    pub fn open(&self) {
        self.state.send_modify(|state| state.is_open = true);
    }

    /// Delays each chunk of data by `delay` from now on.
    pub fn slow(&self, delay: Duration) {
        self.state.send_modify(|state| state.delay = delay);
    }

    /// How often the clients have sent something after an answer, on all connections. With a [delay](Self::slow), messages
    /// that a client sends without waiting for the answer in between count once.
    pub fn round_trips(&self) -> u64 {
        self.round_trips.load(Ordering::SeqCst)
    }

    /// Forwards new connections to port `upstream` from now on.
    pub fn lead_to(&self, upstream: u16) {
        self.upstream.store(upstream, Ordering::SeqCst);
    }
}

async fn accept(
    listener: TcpListener,
    upstream: Arc<AtomicU16>,
    state: watch::Sender<State>,
    round_trips: Arc<AtomicU64>,
) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let (upstream, mut state, turns) =
            (upstream.clone(), state.subscribe(), Turns::new(Arc::clone(&round_trips)));
        connections.spawn(async move {
            let State { losses, cuts, .. } = *state.borrow();
            let mut cut = state.clone();
            tokio::select! {
                () = connect(client, &upstream, &mut state, losses, turns) => {}
                _ = cut.wait_for(|state| state.cuts > cuts) => {}
            }
        });
    }
}

async fn connect(
    client: TcpStream,
    upstream: &AtomicU16,
    state: &mut watch::Receiver<State>,
    losses_at_start: u64,
    turns: Turns,
) {
    let _ = state.wait_for(|state| state.is_open).await;
    let Ok(server) = TcpStream::connect(("127.0.0.1", upstream.load(Ordering::SeqCst))).await else {
        return;
    };
    let (_, _) = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::join!(
        carry(from_client, to_server, state.clone(), losses_at_start, || turns.client_sent(), || ()),
        carry(from_server, to_client, state.clone(), losses_at_start, || (), || turns.server_answers())
    );
}

/// Who sent last on a connection.
struct Turns {
    is_answered: AtomicBool,
    round_trips: Arc<AtomicU64>,
}

impl Turns {
    fn new(round_trips: Arc<AtomicU64>) -> Self {
        Self { is_answered: AtomicBool::new(true), round_trips }
    }

    fn client_sent(&self) {
        if self.is_answered.swap(false, Ordering::SeqCst) {
            self.round_trips.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn server_answers(&self) {
        self.is_answered.store(true, Ordering::SeqCst);
    }
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut state: watch::Receiver<State>,
    losses_at_start: u64,
    arrived: impl Fn(),
    leaves: impl Fn(),
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        if read > 0 {
            arrived();
        }
        // The end of a connection is held back too.
        let Ok(now) =
            state.wait_for(|state| state.is_open || state.losses > losses_at_start).await.map(|state| *state)
        else {
            return;
        };
        if now.losses > losses_at_start {
            std::future::pending::<()>().await;
        }
        if !now.delay.is_zero() {
            tokio::time::sleep(now.delay).await;
        }
        leaves();
        if read == 0 || to.write_all(&buffer[..read]).await.is_err() {
            let _ = to.shutdown().await;
            return;
        }
    }
}
