//! The service of the page "The code of a whole migration": release 4, which no longer has the migration.

use std::process::ExitCode;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::{get, post, put};
use cutover::front::BoxError;
use cutover::{Cutover, migration::Error};
use sqlx::PgPool;

#[tokio::main]
async fn main() -> ExitCode {
    let service = Cutover::service("shop").postgres_from_env();
    service.run(async |instance| Ok::<_, BoxError>(app().with_state(instance.postgres()?))).await
}

fn app() -> Router<PgPool> {
    Router::new()
        .route("/orders", post(add))
        .route("/orders/{id}", get(status))
        .route("/orders/{id}/{status}", put(set))
}

async fn add(State(pool): State<PgPool>) -> Result<String, Error> {
    let insert = "insert into orders (new_status) values ('open') returning id";
    let id: i64 = sqlx::query_scalar(insert).fetch_one(&pool).await?;
    Ok(id.to_string())
}

async fn status(State(pool): State<PgPool>, Path(id): Path<i64>) -> Result<String, Error> {
    let select = "select new_status from orders where id = $1";
    Ok(sqlx::query_scalar(select).bind(id).fetch_one(&pool).await?)
}

async fn set(State(pool): State<PgPool>, Path((id, status)): Path<(i64, String)>) -> Result<(), Error> {
    let update = "update orders set new_status = $2 where id = $1";
    sqlx::query(update).bind(id).bind(status).execute(&pool).await?;
    Ok(())
}
