//! Listeners other than TCP, handshakes, and services other than an axum router.

use std::{convert::Infallible, io};

use axum::{Router, body::Body, extract::ConnectInfo, routing::get};
use cutover::{
    drain::{CutPhase, Drain},
    health::Health,
};
use hyper::{Request, Response, client::conn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixListener, UnixStream, unix},
    time::timeout,
};
use tonic::service::Routes;

use super::{LIMIT, hello, http2, options, request, says_close, short, start, text};

#[tokio::test]
async fn a_unix_socket_drains_like_a_port() {
    let folder = cutover_testkit::Folder::new("drain").unwrap();
    let path = folder.path().join("service.sock");
    let drain = Drain::new(&Health::new(), options()).unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    let peer = |ConnectInfo(peer): ConnectInfo<unix::SocketAddr>| async move {
        if peer.is_unnamed() { "hello" } else { "who" }
    };
    let app = Router::new().route("/", get(peer));
    let serving = tokio::spawn({
        let drain = drain.clone();
        async move { drain.serve(listener, app).await }
    });
    let ask = async || {
        let stream = UnixStream::connect(&path).await?;
        let (mut sender, driver) = conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(driver);
        let response = sender.send_request(request("/")).await.unwrap();
        let closes = says_close(&response);
        assert_eq!(text(response).await, "hello");
        io::Result::Ok(closes)
    };
    assert!(!ask().await.unwrap());
    drain.begin();
    assert!(ask().await.unwrap(), "accepted, and closed after the response");
    let report = timeout(LIMIT, serving).await.unwrap().unwrap().unwrap();
    assert_eq!(report.cut, []);
    assert!(ask().await.is_err(), "the listener is gone");
}

/// A handshake: reads a password.
async fn password(mut stream: TcpStream) -> io::Result<TcpStream> {
    let mut word = [0; 6];
    stream.read_exact(&mut word).await?;
    if &word != b"sesame" {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(stream)
}

#[tokio::test]
async fn a_slow_handshake_delays_neither_others_nor_the_drain() {
    let drain = Drain::new(&Health::new(), short()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn({
        let drain = drain.clone();
        async move { drain.serve_with(listener, password, hello()).await }
    });
    let connect = async |word: &[u8]| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(word).await.unwrap();
        stream
    };
    let mute = connect(b"ses").await;
    let mut wrong = connect(b"please").await;
    let read = timeout(LIMIT, wrong.read(&mut [0; 8])).await.unwrap();
    assert!(!matches!(read, Ok(1..)), "{read:?}");
    let mut right = connect(b"sesameGET / HTTP/1.0\r\n\r\n").await;
    let mut answer = String::new();
    timeout(LIMIT, right.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.ends_with("hello"), "{answer:?}");

    drain.begin();
    let report = timeout(LIMIT, serving).await.unwrap().unwrap().unwrap();
    let cut: Vec<_> = report.cut.iter().map(|cut| (cut.what.clone(), cut.phase)).collect();
    assert_eq!(cut, [(mute.local_addr().unwrap().to_string(), CutPhase::Connection)]);
}

#[tokio::test]
async fn an_error_of_any_service_ends_one_connection_only() {
    let service = tower::service_fn(|request: Request<Body>| async move {
        if request.uri().path() == "/error" {
            return Err(io::Error::other("no"));
        }
        Ok(Response::new(Body::from("plain")))
    });
    let running = start(options(), service).await;
    let (mut sender, _driver) = super::http1(running.address).await;
    sender.send_request(request("/error")).await.unwrap_err();
    let (mut sender, _driver) = super::http1(running.address).await;
    assert_eq!(text(sender.send_request(request("/")).await.unwrap()).await, "plain");
    running.drain.begin();
    assert_eq!(running.report().await.cut, []);
}

#[tokio::test]
async fn routes_of_tonic_are_served_and_drained() {
    let health = Health::new();
    let routes = Routes::new(health.grpc());
    let drain = Drain::new(&health, options()).unwrap();
    let running = super::serve(health, drain, routes).await;
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", running.address)).unwrap();
    let mut client = tonic_health::pb::health_client::HealthClient::new(endpoint.connect().await.unwrap());
    let ask = tonic_health::pb::HealthCheckRequest::default();
    assert_eq!(client.check(ask.clone()).await.unwrap().into_inner().status, 1);
    let mut watch = client.watch(ask).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status, 1);

    running.drain.begin();
    assert_eq!(watch.message().await.unwrap().unwrap().status, 2, "NOT_SERVING at once");
    let ended = timeout(LIMIT, watch.message()).await.unwrap().unwrap_err();
    assert_eq!(ended.code(), tonic::Code::Unavailable);
    let report = running.report().await;
    assert_eq!(report.cut, []);
    assert!(report.waited < options().grace / 2, "a watch does not delay the drain: {:?}", report.waited);
}

#[tokio::test]
async fn one_port_serves_both_protocols() {
    let app = hello().route(
        "/version",
        get(|request: Request<Body>| async move { Ok::<_, Infallible>(format!("{:?}", request.version())) }),
    );
    let running = start(options(), app).await;
    let (mut one, _driver) = super::http1(running.address).await;
    let (mut two, _driver) = http2(running.address).await;
    assert_eq!(text(one.send_request(request("/version")).await.unwrap()).await, "HTTP/1.1");
    assert_eq!(text(two.send_request(request("http://t/version")).await.unwrap()).await, "HTTP/2.0");
    running.drain.begin();
    assert!(running.report().await.waited < options().grace / 2);
}
