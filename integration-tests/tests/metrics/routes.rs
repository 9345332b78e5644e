//! Requests whose route or status is not where it usually is: nested services and gRPC-Web.

use axum::{Router, body::Body, http::StatusCode, routing::get};
use bytes::Bytes;
use cutover_testkit::{GrpcEnding, GrpcEndings};
use http_body_util::{BodyExt, Full};
use hyper::{Request, client::conn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::service::Routes;
use tonic_web::GrpcWebLayer;
use tower_layer::Layer;

use super::sockets::Running;

/// One message without content, as gRPC-Web frames it.
const EMPTY_MESSAGE: &[u8] = &[0; 5];

async fn call(running: &Running, ending: GrpcEnding, content_type: &str) {
    let text = content_type.contains("text");
    let message: &'static [u8] = if text { b"AAAAAAA=" } else { EMPTY_MESSAGE };
    let io = TokioIo::new(TcpStream::connect(running.address).await.unwrap());
    let (mut sender, connection) = conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post(ending.path())
        .header("host", "t")
        .header("content-type", content_type)
        .header("accept", content_type)
        .body(Full::<Bytes>::new(message.into()))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK, "the failure is not in the HTTP status");
    response.into_body().collect().await.unwrap();
}

#[tokio::test]
async fn failed_grpc_web_calls_count_as_failures() {
    for content_type in ["application/grpc-web+proto", "application/grpc-web-text+proto"] {
        let service = GrpcWebLayer::new().layer(GrpcEndings::new(|| ()));
        let app = Routes::new(service).into_axum_router();
        let running = Running::start(app).await;
        for ending in [GrpcEnding::Fine, GrpcEnding::StatusInHead, GrpcEnding::StatusInTrailers] {
            call(&running, ending, content_type).await;
        }
        for status in [200, 503, 500] {
            running
                .wait(&format!(
                    "http_requests_total{{method=\"POST\",route=\"/kit.Endings/{{*rest}}\",status=\"{status}\",version=\"canary\"}} 1"
                ))
                .await;
        }
    }
}

async fn get_path(running: &Running, path: &str) {
    let io = TokioIo::new(TcpStream::connect(running.address).await.unwrap());
    let (mut sender, connection) = conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get(path).header("host", "t").body(Full::<Bytes>::default()).unwrap();
    sender.send_request(request).await.unwrap().into_body().collect().await.unwrap();
}

#[tokio::test]
async fn a_nested_service_counts_under_its_prefix() {
    let files = tower::service_fn(|_: Request<Body>| async {
        Ok::<_, std::convert::Infallible>(axum::response::Response::new(Body::from("file")))
    });
    let app = Router::new()
        .route("/orders", get(|| async {}))
        .nest("/v1", Router::new().nest_service("/tenants/{tenant}/files", files))
        .nest_service("/static", files);
    let running = Running::start(app).await;
    for path in ["/orders", "/static/a.css", "/static/b/c.js", "/v1/tenants/7/files/x", "/nothing/here"] {
        get_path(&running, path).await;
    }
    for (route, status, count) in [
        ("/orders", 200, 1),
        ("/static", 200, 2),
        ("/v1/tenants/{tenant}/files", 200, 1),
        ("unmatched", 404, 1),
    ] {
        running
            .wait(&format!(
                "http_requests_total{{method=\"GET\",route=\"{route}\",status=\"{status}\",version=\"canary\"}} {count}"
            ))
            .await;
    }
}

#[tokio::test]
async fn a_nested_router_keeps_its_own_routes() {
    let inner: Router = Router::new().route("/{id}", get(|| async {}));
    let running = Running::start(Router::new().nest("/orders", inner)).await;
    get_path(&running, "/orders/1").await;
    get_path(&running, "/orders/1/lines").await;
    for (route, status) in [("/orders/{id}", 200), ("unmatched", 404)] {
        running
            .wait(&format!(
                "http_requests_total{{method=\"GET\",route=\"{route}\",status=\"{status}\",version=\"canary\"}} 1"
            ))
            .await;
    }
}
