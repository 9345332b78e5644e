//! Requests at a constant rate (open loop).

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{sleep_until, timeout},
};

/// A request that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// An open loop over some HTTP/1 connections. Each request has a time at which it is due, and its duration counts
/// from that time. So a stall counts for all requests that were due during it.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    connections: JoinSet<Vec<Shot>>,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Shot {
    /// When it was due.
    pub due: Instant,
    /// Time from then to the end of the response.
    pub took: Duration,
    /// Why it failed: everything but a complete response with the wanted status is a failure.
    pub failure: Option<String>,
}

impl Load {
    /// Sends `GET path` at `rate` requests per second over `connections`. Another status than `wanted` is a failure.
    pub fn start(address: SocketAddr, path: &str, wanted: u16, rate: u32, connections: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let every = Duration::from_secs(1) * connections.max(1) / rate.max(1);
        let mut all = JoinSet::new();
        for number in 0..connections.max(1) {
            let first = Instant::now() + every * number / connections.max(1);
            let line = Line { address, path: path.to_owned(), wanted, sender: None, driver: JoinSet::new() };
            all.spawn(line.send_all(first, every, Arc::clone(&stop)));
        }
        Self { stop, connections: all }
    }

    /// Stops and waits for requests in flight. Returns all requests in the order in which they were due.
    pub async fn stop(mut self) -> Vec<Shot> {
        self.stop.store(true, Ordering::Relaxed);
        let mut shots = Vec::new();
        while let Some(of_one) = self.connections.join_next().await {
            shots.extend(of_one.into_iter().flatten());
        }
        shots.sort_by_key(|shot| shot.due);
        shots
    }
}

struct Line {
    address: SocketAddr,
    path: String,
    wanted: u16,
    sender: Option<http1::SendRequest<Empty<Bytes>>>,
    driver: JoinSet<hyper::Result<()>>,
}

impl Line {
    async fn send_all(mut self, mut due: Instant, every: Duration, stop: Arc<AtomicBool>) -> Vec<Shot> {
        let mut shots = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            sleep_until(due.into()).await;
            let failure = match timeout(PATIENCE, self.send()).await {
                Ok(Ok(())) => None,
                Ok(Err(failure)) => Some(failure),
                Err(_) => Some(format!("no answer within {PATIENCE:?}")),
            };
            if failure.is_some() {
                self.sender = None;
                self.driver.abort_all();
            }
            shots.push(Shot { due, took: due.elapsed(), failure });
            due += every;
        }
        shots
    }

    async fn send(&mut self) -> Result<(), String> {
        // A connection that the server closed before anything was sent on it is no failure.
        if let Some(sender) = &mut self.sender
            && sender.ready().await.is_err()
        {
            self.sender = None;
        }
        let sender = match &mut self.sender {
            Some(sender) => sender,
            none => {
                while self.driver.try_join_next().is_some() {}
                let stream = TcpStream::connect(self.address).await.map_err(|error| error.to_string())?;
                stream.set_nodelay(true).map_err(|error| error.to_string())?;
                let handshake = http1::handshake(TokioIo::new(stream)).await;
                let (new, connection) = handshake.map_err(|error| error.to_string())?;
                self.driver.spawn(connection);
                none.insert(new)
            }
        };
        let request = Request::get(&self.path).header("host", "load").body(Empty::new());
        let request = request.map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.map_err(|error| error.to_string())?;
        if status != self.wanted {
            return Err(format!("{status} {}", String::from_utf8_lossy(&body.to_bytes())));
        }
        Ok(())
    }
}
