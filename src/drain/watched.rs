use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::handle::{Inner, Stage};
use super::registry::Connection;

/// An entry in the registry, for as long as the connection's bytes belong to anybody: its
/// task, or the handler that an upgrade gave them to.
pub(super) struct Registered {
    pub(super) inner: Arc<Inner>,
    pub(super) connection: Arc<Connection>,
    id: u64,
}

impl Registered {
    pub(super) fn new(inner: Arc<Inner>, peer: String) -> Self {
        let (id, connection) = inner.registry.add_connection(peer);
        Self { inner, connection, id }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.inner.registry.remove_connection(self.id);
    }
}

/// A stream that fails once the deadline has passed, which is how a WebSocket ends whose
/// handler heard nothing: its bytes are the one thing of it that passes through here.
pub(super) struct Watched<IO> {
    pub(super) stream: IO,
    pub(super) registered: Registered,
}

impl<IO> Watched<IO> {
    fn uncut(&self) -> io::Result<()> {
        if self.registered.inner.is_at(Stage::Forced) {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "cut at the drain's deadline"));
        }
        Ok(())
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Watched<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Registered before looking, so that a change in between isn't missed.
        self.registered.connection.reader.register(cx.waker());
        self.uncut()?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Watched<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.registered.connection.writer.register(cx.waker());
        self.uncut()?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.registered.connection.writer.register(cx.waker());
        self.uncut()?;
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
