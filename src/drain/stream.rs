use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep_until};

use super::refusal::Refusal;
use super::registry::Connection;
use super::stage::Stage;
use super::state::State;

/// A connection's entry in the registry. It exists as long as the connection's bytes are in use: by its task, or by the
/// handler that an upgrade gave them to.
pub(super) struct Entry {
    pub(super) state: Arc<State>,
    pub(super) connection: Arc<Connection>,
    id: u64,
    _permit: OwnedSemaphorePermit,
}

impl Entry {
    pub(super) fn new(state: Arc<State>, peer: String, permit: OwnedSemaphorePermit) -> Self {
        let (id, connection) = state.registry.add_connection(peer);
        Self { state, connection, id, _permit: permit }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.state.registry.remove_connection(self.id);
    }
}

/// Limits the time from the first byte of an HTTP/1 request head to its end.
///
/// hyper's own limit includes the idle time before the head, which has to be long.
pub(super) struct HeadTimer {
    connection: Arc<Connection>,
    limit: Duration,
    /// When the first bytes of a head came, and how many requests had begun by then.
    started: Option<(u64, Instant)>,
    /// Made only for a head that did not come in one piece.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl HeadTimer {
    pub(super) fn new(connection: Arc<Connection>, limit: Duration) -> Self {
        Self { connection, limit, started: None, sleep: None }
    }

    fn received(&mut self) {
        let (is_head, requests) = self.connection.head_expected();
        if is_head && self.started.is_none() {
            self.started = Some((requests, Instant::now()));
        }
    }

    /// Fails when a head has been incomplete for too long.
    fn poll_expired(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Some((requests, since)) = self.started else { return Ok(()) };
        if self.connection.head_expected() != (true, requests) {
            (self.started, self.sleep) = (None, None);
            return Ok(());
        }
        let end = since + self.limit;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(end)));
        match sleep.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::TimedOut, "the request head took too long")),
            Poll::Pending => Ok(()),
        }
    }
}

/// The end of what the client sends, held back while a request of HTTP/1 waits for its response.
///
/// hyper gives a request up when it reads the end, or with `half_close` never: then the handler of a client that is gone
/// runs until it ends by itself. Both kinds of clients look the same until something is written.
pub(super) struct ClientEnd {
    limit: Duration,
    /// Since the client's end was read.
    held: Option<Pin<Box<Sleep>>>,
}

impl ClientEnd {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, held: None }
    }

    /// Ready when the end may be seen.
    fn poll_seen(&mut self, connection: &Connection, cx: &mut Context<'_>) -> Poll<()> {
        // Before the look at the requests, so that one which ends in between wakes the reader.
        connection.half_closed();
        if self.limit.is_zero() || !connection.owes_response() {
            return Poll::Ready(());
        }
        let limit = self.limit;
        self.held.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit))).as_mut().poll(cx)
    }
}

/// A connection's bytes. Reads fail when a request head takes too long. On a public connection reads and writes fail
/// after the drain's deadline, which ends an upgraded connection: nothing else of it passes through this library.
pub(super) struct ConnectionStream<IO> {
    pub(super) stream: IO,
    pub(super) head: HeadTimer,
    pub(super) end: ClientEnd,
    /// `None` on the admin listener.
    pub(super) entry: Option<Entry>,
}

impl<IO> ConnectionStream<IO> {
    fn check_deadline(&self) -> io::Result<()> {
        match &self.entry {
            Some(entry) if entry.state.stages.is_at(Stage::Forced) => {
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, "cut by the drain"))
            }
            _ => Ok(()),
        }
    }

    /// Registers the writer's waker before the check, so that a change in between is not missed.
    fn check_write(&self, cx: &Context<'_>) -> io::Result<()> {
        if let Some(entry) = &self.entry {
            entry.connection.writer.register(cx.waker());
        }
        self.check_deadline()
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for ConnectionStream<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.head.connection.reader.register(cx.waker());
        self.check_deadline()?;
        if let Err(error) = self.head.poll_expired(cx) {
            if let Some(entry) = &self.entry {
                entry.state.refusals.add(Refusal::HeadTimeout);
            }
            return Poll::Ready(Err(error));
        }
        let this = &mut *self;
        let (before, is_end) = (buf.filled().len(), this.end.held.is_some());
        if !is_end {
            ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        }
        if buf.filled().len() > before {
            this.head.received();
        } else if is_end || buf.remaining() > 0 {
            ready!(this.end.poll_seen(&this.head.connection, cx));
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for ConnectionStream<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check_write(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check_write(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
