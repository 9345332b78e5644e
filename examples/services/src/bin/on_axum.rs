//! An ordinary service on axum, with Postgres, Redis, flags, sessions and a migration.

use std::process::ExitCode;

use axum::{Router, extract::State, routing::get};
use cutover::ConfigError;
use cutover::flags::{Decisions, Flag};
use cutover::migration::ColumnMigration;
use cutover::migration::{MigrationSpec, PhaseRange};
use cutover::{Cutover, front::BoxError};
use sqlx::PgPool;
use tower_sessions::SessionManagerLayer;

const POLITE: Flag = Flag::new("polite", false);

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().init();
    let service = Cutover::service("on-axum").postgres_from_env().redis_from_env().flag(&POLITE);
    let service = service.migration_by_flag(payment_status, "payment-status");
    service
        .run(async |instance| {
            let sessions = SessionManagerLayer::new(instance.sessions()?);
            let app = Router::new().route("/", get(hello)).with_state(instance.postgres()?);
            Ok::<_, BoxError>(app.layer(sessions))
        })
        .await
}

fn payment_status(pool: PgPool) -> Result<MigrationSpec, ConfigError> {
    let plan = ColumnMigration::new(pool, "orders")
        .key("id")
        .column("old_payment_status", "new_payment_status", "text")
        .forward("lower(old_payment_status)")
        .backward("upper(new_payment_status)")
        .build()?;
    Ok(MigrationSpec::new("payment_status", PhaseRange::FULL).plan(plan))
}

async fn hello(State(pool): State<PgPool>, decisions: Decisions) -> Result<String, String> {
    let who: String =
        sqlx::query_scalar("select current_user::text").fetch_one(&pool).await.map_err(|e| e.to_string())?;
    // The log line contains the request's span: method, route, version, and the phase of each migration.
    tracing::info!("greeted");
    Ok(if decisions.decide(&POLITE) { format!("good day, {who}") } else { format!("hello {who}") })
}
