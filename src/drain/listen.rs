use std::{fmt, future::Future, io, net::SocketAddr, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream, unix},
};

/// A connection that is silent for so long is asked whether its peer is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Where connections come from: a TCP or Unix listener, or one of your own.
///
/// It hands out bytes, not TLS: a handshake in here would hold up everybody behind it. See
/// [`Drain::serve_with`](super::Drain::serve_with).
pub trait Listen: Send + Sync + 'static {
    /// One connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// Who is at the other end. Handlers find it as `ConnectInfo<Peer>`.
    type Peer: fmt::Debug + Clone + Send + Sync + 'static;

    /// The next connection. An error pauses accepting for a moment and never ends it.
    ///
    /// Has to be cancel safe: a connection is either returned or left for the next call.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Self::Peer)>> + Send;
}

impl Listen for TcpListener {
    type Stream = TcpStream;
    type Peer = SocketAddr;

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, peer) = TcpListener::accept(self).await?;
        // Answers are small and wait for nothing; failing to say so costs only time.
        let _ = stream.set_nodelay(true);
        // A peer that is gone without a word would keep its place for ever.
        let _ = SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE));
        Ok((stream, peer))
    }
}

impl Listen for UnixListener {
    type Stream = UnixStream;
    type Peer = unix::SocketAddr;

    fn accept(&self) -> impl Future<Output = io::Result<(UnixStream, unix::SocketAddr)>> + Send {
        UnixListener::accept(self)
    }
}
