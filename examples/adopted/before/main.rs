//! The shop: orders, and what has become of them.

mod orders;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post, put};
use axum::{Router, serve};
use orders::Orders;
use sqlx::PgPool;
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().init();
    let pool = PgPool::connect(&std::env::var("DATABASE_URL")?).await?;
    serve(TcpListener::bind("0.0.0.0:8080").await?, app(Orders::new(pool))).await?;
    Ok(())
}

fn app(orders: Orders) -> Router {
    Router::new()
        .route("/orders", post(add))
        .route("/orders/{id}", get(status))
        .route("/orders/{id}/{status}", put(set))
        .with_state(orders)
}

async fn add(State(orders): State<Orders>) -> Result<String, StatusCode> {
    Ok(orders.add("open").await.map_err(failed)?.to_string())
}

async fn set(
    State(orders): State<Orders>,
    Path((id, status)): Path<(i64, String)>,
) -> Result<(), StatusCode> {
    orders.set(id, &status).await.map_err(failed)
}

async fn status(State(orders): State<Orders>, Path(id): Path<i64>) -> Result<String, StatusCode> {
    orders.status(id).await.map_err(failed)
}

fn failed(error: sqlx::Error) -> StatusCode {
    tracing::error!(%error, "query failed");
    StatusCode::INTERNAL_SERVER_ERROR
}
