//! A service with two routes, one table and one flag.

use std::process::ExitCode;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use cutover::Cutover;
use cutover::flags::{Decisions, Flag};
use cutover::front::BoxError;
use sqlx::PgPool;

/// Off until it is switched on in Unleash (`UNLEASH_URL`, `UNLEASH_TOKEN`). Without Unleash, it has this default.
const SHOUT: Flag = Flag::new("shout", false);

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().init();
    // The name identifies the service in metrics, in the ledger and in Unleash.
    let service = Cutover::service(env!("CARGO_PKG_NAME")).postgres_from_env().flag(&SHOUT);
    service.run(async |instance| Ok::<_, BoxError>(app(instance.postgres()?))).await
}

fn app(pool: PgPool) -> Router {
    Router::new().route("/orders", post(add)).route("/orders/{id}", get(status)).with_state(pool)
}

async fn add(State(pool): State<PgPool>) -> Result<String, StatusCode> {
    let insert = "insert into orders (status) values ('open') returning id";
    let id: i64 = sqlx::query_scalar(insert).fetch_one(&pool).await.map_err(failed)?;
    Ok(id.to_string())
}

async fn status(
    State(pool): State<PgPool>,
    Path(id): Path<i64>,
    decisions: Decisions,
) -> Result<String, StatusCode> {
    let select = "select status from orders where id = $1";
    let status: Option<String> =
        sqlx::query_scalar(select).bind(id).fetch_optional(&pool).await.map_err(failed)?;
    let status = status.ok_or(StatusCode::NOT_FOUND)?;
    Ok(if decisions.decide(&SHOUT) { status.to_uppercase() } else { status })
}

fn failed(error: sqlx::Error) -> StatusCode {
    tracing::error!(%error, "query failed");
    StatusCode::INTERNAL_SERVER_ERROR
}
