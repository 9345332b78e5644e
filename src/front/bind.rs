use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// How many connections the kernel keeps until they are accepted, as in tokio.
const BACKLOG: i32 = 1024;

/// Opens a listener. `[::]` takes connections of IPv6 and IPv4, whatever the system's default is. On a host without IPv6 it
/// means `0.0.0.0`.
pub(super) async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    if address.ip() != IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        return TcpListener::bind(address).await;
    }
    match both(address) {
        Err(error) if has_no_ipv6(&error) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await,
        listener => listener,
    }
}

fn both(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn has_no_ipv6(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;
    use crate::drain::Listen;

    #[tokio::test]
    async fn the_unspecified_address_takes_both_families() {
        let listener = bind("[::]:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut hosts = vec!["127.0.0.1"];
        // A host without IPv6 has one family only.
        hosts.extend(address.is_ipv6().then_some("::1"));
        for host in hosts {
            let (accepted, client) =
                tokio::join!(Listen::accept(&listener), TcpStream::connect((host, address.port())));
            client.unwrap();
            let (_, peer) = accepted.unwrap();
            assert_eq!(peer.ip().to_string(), host, "an IPv4 client has its own address");
        }
        let taken = bind(address).await.unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    }
}
