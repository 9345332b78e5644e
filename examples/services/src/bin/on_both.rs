//! axum and tonic on one port: a gRPC service is an ordinary route.

use std::process::ExitCode;

use axum::{Router, routing::get};
use cutover::{Cutover, front::BoxError};
use tonic::service::Routes;

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().init();
    Cutover::service("on-both")
        .run(async |instance| {
            let grpc = Routes::new(instance.health().grpc()).into_axum_router().reset_fallback();
            Ok::<_, BoxError>(Router::new().route("/", get(|| async { "hello" })).merge(grpc))
        })
        .await
}
