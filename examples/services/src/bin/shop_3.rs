//! The service of the guide's page "The code of a whole migration": release 3, without code for the old column.

use std::process::ExitCode;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::{get, post, put};
use cutover::front::BoxError;
use cutover::migration::{ColumnMigration, Error, Migration, MigrationSpec, Phase, PhaseRange};
use cutover::{ConfigError, Cutover};
use sqlx::PgPool;

#[tokio::main]
async fn main() -> ExitCode {
    let service = Cutover::service("shop").postgres_from_env().migration(order_status);
    service
        .run(async |instance| {
            let pool = instance.postgres()?;
            let migration = instance.migration("order-status").ok_or("the migration is declared above")?;
            Ok::<_, BoxError>(app().with_state(Shop { pool, migration }))
        })
        .await
}

/// The plan stays until the old column has been dropped.
fn order_status(pool: PgPool) -> Result<MigrationSpec, ConfigError> {
    let plan = ColumnMigration::new(pool, "orders")
        .key("id")
        .column("old_status", "new_status", "text")
        .forward("lower(old_status)")
        .backward("upper(new_status)")
        .build()?;
    Ok(MigrationSpec::new("order-status", PhaseRange::from_phase(Phase::Retire)).plan(plan))
}

#[derive(Clone)]
struct Shop {
    pool: PgPool,
    migration: Migration,
}

fn app() -> Router<Shop> {
    Router::new()
        .route("/orders", post(add))
        .route("/orders/{id}", get(status))
        .route("/orders/{id}/{status}", put(set))
}

async fn add(State(shop): State<Shop>) -> Result<String, Error> {
    let mut tx = shop.migration.begin(&shop.pool).await?;
    let insert = "insert into orders (new_status) values ('open') returning id";
    let id: i64 = sqlx::query_scalar(insert).fetch_one(&mut *tx).await?;
    tx.commit().await?;
    Ok(id.to_string())
}

async fn status(State(shop): State<Shop>, Path(id): Path<i64>) -> Result<String, Error> {
    let select = "select new_status from orders where id = $1";
    Ok(sqlx::query_scalar(select).bind(id).fetch_one(&shop.pool).await?)
}

async fn set(State(shop): State<Shop>, Path((id, status)): Path<(i64, String)>) -> Result<(), Error> {
    let mut tx = shop.migration.begin(&shop.pool).await?;
    let update = "update orders set new_status = $2 where id = $1";
    sqlx::query(update).bind(id).bind(status).execute(&mut *tx).await?;
    tx.commit().await
}
