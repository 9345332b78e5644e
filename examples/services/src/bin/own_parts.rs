//! A service with its own pool, its own registry and its own `main`.

use std::process::ExitCode;

use axum::{Router, routing::get};
use cutover::Cutover;
use prometheus::{IntCounter, Registry};
use sqlx::postgres::PgPoolOptions;

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().init();
    let url = std::env::var("DATABASE_URL").unwrap_or_default();
    let (Ok(pool), Ok(hellos)) = (
        PgPoolOptions::new().max_connections(3).connect_lazy(&url),
        IntCounter::new("hellos_total", "Greetings that were sent."),
    ) else {
        return ExitCode::from(2);
    };
    let registry = Registry::new();
    if registry.register(Box::new(hellos.clone())).is_err() {
        return ExitCode::from(2);
    }
    let instance = match Cutover::service("own-parts").postgres(pool).registry(registry).start().await {
        Ok(instance) => instance,
        // Also the result of a preflight that was requested.
        Err(error) => return error.report(),
    };
    let hello = move || async move {
        hellos.inc();
        "hello"
    };
    match instance.serve(Router::new().route("/", get(hello))).await {
        Ok(_) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(3),
    }
}
