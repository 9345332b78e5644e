//! Who may drain an instance over HTTP.

use std::{io, net::SocketAddr};

use cutover::{
    drain::{Drain, DrainOptions, DrainSecret, Listen},
    health::Health,
};
use http_body_util::Empty;
use hyper::{Request, StatusCode};
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::{LIMIT, http1, options};

async fn drain_request(address: SocketAddr, method: &str, secret: Option<&str>) -> StatusCode {
    let (mut sender, _driver) = http1(address).await;
    let mut request = Request::builder().method(method).uri("/drain").header("host", "t");
    if let Some(secret) = secret {
        request = request.header("x-cutover-drain-secret", secret);
    }
    sender.send_request(request.body(Empty::new()).unwrap()).await.unwrap().status()
}

#[tokio::test]
async fn only_post_or_the_secret_can_drain() {
    let secret = "a-secret-of-this-test";
    let with_secret = DrainOptions { secret: Some(DrainSecret::new(secret).unwrap()), ..options() };
    for (options, secret, wrong) in
        [(options(), None, Some(secret)), (with_secret, Some(secret), Some("a-secret-of-that-test"))]
    {
        let drain = Drain::new(&Health::new(), options).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn({
            let drain = drain.clone();
            async move { drain.serve_admin(listener, drain.router()).await }
        });
        for (method, secret) in [
            ("GET", None),
            ("HEAD", None),
            ("GET", wrong),
            ("HEAD", secret),
            ("PUT", secret),
            ("DELETE", None),
        ] {
            let status = drain_request(address, method, secret).await;
            assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{method} {secret:?}");
        }
        assert!(!drain.draining());
        let method = if secret.is_some() { "GET" } else { "POST" };
        assert_eq!(drain_request(address, method, secret).await, StatusCode::OK);
        assert!(drain.draining());
        timeout(LIMIT, serving).await.unwrap().unwrap().unwrap();
    }
}

/// A listener whose peers are on another host.
struct Elsewhere(TcpListener);

impl Listen for Elsewhere {
    type Stream = TcpStream;
    type Peer = SocketAddr;

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, _) = Listen::accept(&self.0).await?;
        Ok((stream, "192.0.2.1:1000".parse().unwrap()))
    }
}

#[tokio::test]
async fn a_post_from_another_host_needs_the_secret() {
    let secret = "a-secret-of-this-test";
    let options = DrainOptions { secret: Some(DrainSecret::new(secret).unwrap()), ..options() };
    let drain = Drain::new(&Health::new(), options).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn({
        let drain = drain.clone();
        async move { drain.serve_admin(Elsewhere(listener), drain.router()).await }
    });
    assert_eq!(drain_request(address, "POST", None).await, StatusCode::FORBIDDEN);
    assert_eq!(drain_request(address, "POST", Some("a-secret-of-that-test")).await, StatusCode::FORBIDDEN);
    assert!(!drain.draining());
    assert_eq!(drain_request(address, "POST", Some(secret)).await, StatusCode::OK);
    assert!(drain.draining());
    timeout(LIMIT, serving).await.unwrap().unwrap().unwrap();
}
