use std::{fmt, future::Future, io, net::SocketAddr, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream, unix},
};

/// After this time without data the system probes whether the peer still exists.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// A source of connections: a TCP or Unix listener, or your own.
///
/// It returns raw streams: a TLS handshake in [`accept`](Self::accept) would delay every other connection. See
/// [`Drain::serve_with`](super::Drain::serve_with).
pub trait Listen: Send + Sync + 'static {
    /// One connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// The peer's address. Handlers find it as `ConnectInfo<Peer>`.
    type Peer: fmt::Debug + Clone + Send + Sync + 'static;

    /// Returns the next connection. An error pauses accepting for a moment and never ends it.
    ///
    /// # Cancel safety
    ///
    /// Has to be cancel safe: a connection is either returned or left for the next call.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Self::Peer)>> + Send;
}

impl Listen for TcpListener {
    type Stream = TcpStream;
    type Peer = SocketAddr;

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, mut peer) = TcpListener::accept(self).await?;
        // On a listener for both families, an IPv4 client has an IPv6 address, which no rule for IPv4 would recognise.
        peer.set_ip(peer.ip().to_canonical());
        // Responses are sent at once. A failure costs only time.
        let _ = stream.set_nodelay(true);
        // Without keepalive, a peer that disappeared would keep its connection forever.
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
