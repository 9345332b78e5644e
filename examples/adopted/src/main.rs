//! The shop: orders, and what has become of them.

mod orders;
#[cfg(test)]
mod tests;

use std::process::ExitCode;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::{get, post, put};
use cutover::Cutover;
use cutover::front::BoxError;
use cutover::migration::Error;
use orders::{Orders as _, Shop};

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().init();
    let service = Cutover::service("shop").postgres_from_env().migration(orders::order_status);
    service
        .run(async |instance| {
            let migration = instance.migration("order-status").ok_or("the migration is declared above")?;
            Ok::<_, BoxError>(app(Shop::new(instance.postgres()?, migration)))
        })
        .await
}

fn app(shop: Shop) -> Router {
    Router::new()
        .route("/orders", post(add))
        .route("/orders/{id}", get(status))
        .route("/orders/{id}/{status}", put(set))
        .with_state(shop)
}

async fn add(State(shop): State<Shop>) -> Result<String, Error> {
    let mut tx = shop.begin().await?;
    let id = shop.orders.add(&mut tx, None, "open").await?;
    tx.commit().await?;
    Ok(id.to_string())
}

async fn set(State(shop): State<Shop>, Path((id, status)): Path<(i64, String)>) -> Result<(), Error> {
    let mut tx = shop.begin().await?;
    shop.orders.set(&mut tx, id, &status).await?;
    tx.commit().await
}

async fn status(State(shop): State<Shop>, Path(id): Path<i64>) -> Result<String, Error> {
    shop.orders.status(id).await
}
