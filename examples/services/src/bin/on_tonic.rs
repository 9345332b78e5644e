//! gRPC only. It serves the standard health service; add your own services with `add_service`.

use std::process::ExitCode;

use cutover::{Cutover, front::BoxError};
use tonic::service::Routes;

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().init();
    Cutover::service("on-tonic")
        .run(async |instance| Ok::<_, BoxError>(Routes::new(instance.health().grpc()).into_axum_router()))
        .await
}
