//! The shop: orders, and what has become of them.

mod orders;

use std::process::ExitCode;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post, put};
use cutover::Cutover;
use cutover::front::BoxError;
use orders::Orders;

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().init();
    let service = Cutover::service("shop").postgres_from_env();
    service.run(async |instance| Ok::<_, BoxError>(app(Orders::new(instance.postgres()?)))).await
}

fn app(orders: Orders) -> Router {
    Router::new()
        .route("/orders", post(add))
        .route("/orders/{id}", get(status))
        .route("/orders/{id}/{status}", put(set))
        .with_state(orders)
}

async fn add(State(orders): State<Orders>) -> Result<String, StatusCode> {
    let mut tx = orders.begin().await.map_err(failed)?;
    let id = orders.add(&mut tx, "open").await.map_err(failed)?;
    tx.commit().await.map_err(failed)?;
    Ok(id.to_string())
}

async fn set(
    State(orders): State<Orders>,
    Path((id, status)): Path<(i64, String)>,
) -> Result<(), StatusCode> {
    let mut tx = orders.begin().await.map_err(failed)?;
    orders.set(&mut tx, id, &status).await.map_err(failed)?;
    tx.commit().await.map_err(failed)
}

async fn status(State(orders): State<Orders>, Path(id): Path<i64>) -> Result<String, StatusCode> {
    orders.status(id).await.map_err(failed)
}

fn failed(error: sqlx::Error) -> StatusCode {
    tracing::error!(%error, "query failed");
    StatusCode::INTERNAL_SERVER_ERROR
}
