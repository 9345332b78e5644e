use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use http::uri::PathAndQuery;
use http::{Method, Version};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::stage::{Stage, Stages};
use super::{Cut, CutPhase};

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Everything that a drain waits for. Requests are listed per connection, so that two connections share nothing while
/// they serve.
#[derive(Default)]
pub(super) struct Registry {
    members: Mutex<Members>,
    left: Notify,
}

#[derive(Default)]
struct Members {
    next: u64,
    listeners: usize,
    connections: HashMap<u64, Arc<Connection>>,
    work: HashMap<u64, (Arc<str>, Instant)>,
}

impl Members {
    fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl Registry {
    pub(super) fn add_listener(&self) {
        locked(&self.members).listeners += 1;
    }

    pub(super) fn remove_listener(&self) {
        locked(&self.members).listeners -= 1;
        self.left.notify_waiters();
    }

    pub(super) fn add_connection(&self, peer: String) -> (u64, Arc<Connection>) {
        let connection = Arc::new(Connection::new(peer));
        let mut members = locked(&self.members);
        let id = members.id();
        members.connections.insert(id, Arc::clone(&connection));
        (id, connection)
    }

    pub(super) fn remove_connection(&self, id: u64) {
        locked(&self.members).connections.remove(&id);
        self.left.notify_waiters();
    }

    pub(super) fn add_work(&self, name: Arc<str>) -> u64 {
        let mut members = locked(&self.members);
        let id = members.id();
        members.work.insert(id, (name, Instant::now()));
        id
    }

    pub(super) fn remove_work(&self, id: u64) {
        locked(&self.members).work.remove(&id);
        self.left.notify_waiters();
    }

    /// Waits until no listener, connection or work is left.
    pub(super) async fn empty(&self) {
        self.until(|m| m.listeners == 0 && m.connections.is_empty() && m.work.is_empty()).await;
    }

    /// Waits until no connection is left.
    pub(super) async fn disconnected(&self) {
        self.until(|m| m.connections.is_empty()).await;
    }

    async fn until(&self, done: impl Fn(&Members) -> bool) {
        loop {
            // Registered before the check, so that a removal in between is not missed.
            let left = self.left.notified();
            tokio::pin!(left);
            left.as_mut().enable();
            if done(&locked(&self.members)) {
                return;
            }
            left.await;
        }
    }

    /// Makes the task of every connection look at the stage again.
    pub(super) fn wake_connections(&self) {
        for connection in locked(&self.members).connections.values() {
            connection.task.wake();
            connection.reader.wake();
            connection.writer.wake();
        }
    }

    /// What has not ended, the oldest first.
    pub(super) fn list(&self) -> Vec<Cut> {
        let members = locked(&self.members);
        let mut cut: Vec<_> = members.connections.values().flat_map(|c| c.list()).collect();
        cut.extend(members.work.values().map(|(name, since)| Cut {
            what: name.to_string(),
            age: since.elapsed(),
            phase: CutPhase::Work,
        }));
        drop(members);
        cut.sort_by_key(|cut| std::cmp::Reverse(cut.age));
        cut
    }
}

/// One connection and its requests in flight. Only HTTP/2 has more than one at a time.
pub(super) struct Connection {
    peer: String,
    opened: Instant,
    http2: AtomicBool,
    /// The client sends no more, and its requests go on.
    is_half_closed: AtomicBool,
    requests: Mutex<Requests>,
    first_request: Notify,
    /// With a channel, every connection would take the channel's lock each time it is polled.
    task: AtomicWaker,
    /// The wakers of the task that reads and writes the bytes: the connection's own, or the handler of an upgrade.
    pub(super) reader: AtomicWaker,
    pub(super) writer: AtomicWaker,
}

#[derive(Default)]
struct Requests {
    begun: u64,
    open: Vec<Request>,
}

struct Request {
    id: u64,
    method: Method,
    target: Option<PathAndQuery>,
    started: Instant,
    phase: CutPhase,
}

impl Connection {
    pub(super) fn new(peer: String) -> Self {
        Self {
            peer,
            opened: Instant::now(),
            http2: AtomicBool::new(false),
            is_half_closed: AtomicBool::new(false),
            requests: Mutex::default(),
            first_request: Notify::new(),
            task: AtomicWaker::new(),
            reader: AtomicWaker::new(),
            writer: AtomicWaker::new(),
        }
    }

    pub(super) fn start<B>(&self, request: &http::Request<B>) -> u64 {
        let mut requests = locked(&self.requests);
        requests.begun += 1;
        let id = requests.begun;
        requests.open.push(Request {
            id,
            method: request.method().clone(),
            target: request.uri().path_and_query().cloned(),
            started: Instant::now(),
            phase: CutPhase::Head,
        });
        drop(requests);
        if id == 1 {
            let http2 = request.version() == Version::HTTP_2;
            self.http2.store(http2, Ordering::Release);
            self.first_request.notify_one();
        }
        id
    }

    pub(super) fn head_sent(&self, id: u64, upgraded: bool) {
        let mut requests = locked(&self.requests);
        if let Some(request) = requests.open.iter_mut().find(|r| r.id == id) {
            request.phase = if upgraded { CutPhase::Upgraded } else { CutPhase::Body };
        }
    }

    pub(super) fn end(&self, id: u64) {
        let mut requests = locked(&self.requests);
        // An upgraded request lasts as long as its connection.
        let ended = |r: &Request| r.id == id && r.phase != CutPhase::Upgraded;
        if let Some(index) = requests.open.iter().position(ended) {
            requests.open.swap_remove(index);
        }
        drop(requests);
        if self.is_half_closed.load(Ordering::Acquire) {
            self.reader.wake();
        }
    }

    /// Waits for `stage`. Only the connection's own task may call this, because there is one waker.
    pub(super) async fn reached(&self, stages: &Stages, stage: Stage) {
        poll_fn(|cx| {
            // Registered before the check, so that a change in between is not missed.
            self.task.register(cx.waker());
            if stages.is_at(stage) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Known from the first request on.
    pub(super) fn is_http2(&self) -> bool {
        self.http2.load(Ordering::Acquire)
    }

    /// Waits for the first request, at most `limit`.
    pub(super) async fn used(&self, limit: Duration) {
        if locked(&self.requests).begun == 0 {
            let _ = tokio::time::timeout(limit, self.first_request.notified()).await;
        }
    }

    /// Returns after `limit` if no request has begun by then; otherwise never.
    pub(super) async fn unused(&self, limit: Duration) {
        tokio::time::sleep(limit).await;
        if locked(&self.requests).begun > 0 {
            std::future::pending::<()>().await;
        }
    }

    /// Whether bytes that arrive now belong to a request head, and how many requests have begun. HTTP/2 has other
    /// frames between heads.
    pub(super) fn head_expected(&self) -> (bool, u64) {
        let requests = locked(&self.requests);
        (requests.open.is_empty() && !self.is_http2(), requests.begun)
    }

    /// The client has closed its side. From now on the reader is woken when a request ends.
    pub(super) fn half_closed(&self) {
        self.is_half_closed.store(true, Ordering::Release);
    }

    /// Whether an HTTP/1 client still waits for a response. After an upgrade it has had its response.
    pub(super) fn owes_response(&self) -> bool {
        let is_open = |request: &Request| request.phase != CutPhase::Upgraded;
        !self.is_http2() && locked(&self.requests).open.iter().any(is_open)
    }

    fn list(&self) -> Vec<Cut> {
        let requests = locked(&self.requests);
        if requests.open.is_empty() {
            return vec![Cut {
                what: self.peer.clone(),
                age: self.opened.elapsed(),
                phase: CutPhase::Connection,
            }];
        }
        let cut = |request: &Request| Cut {
            what: format!("{} {}", request.method, request.target.as_ref().map_or("*", PathAndQuery::path)),
            age: request.started.elapsed(),
            phase: request.phase,
        };
        requests.open.iter().map(cut).collect()
    }
}
