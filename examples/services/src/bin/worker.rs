//! A worker without requests. A drain waits for its work; probes, metrics and `/drain` are on the admin listener.

use std::process::ExitCode;
use std::time::Duration;

use axum::Router;
use cutover::drain::Drain;
use cutover::{Cutover, front::BoxError};
use sqlx::PgPool;

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().init();
    Cutover::service("worker")
        .postgres_from_env()
        .run(async |instance| {
            tokio::spawn(work(instance.postgres()?, instance.drain().clone()));
            Ok::<_, BoxError>(None::<Router>)
        })
        .await
}

async fn work(pool: PgPool, drain: Drain) {
    while !drain.draining() {
        // The drain waits for a piece of work that has begun. The loop begins no further one.
        let piece = drain.work("count");
        let _ = sqlx::query("select count(*) from pg_class").execute(&pool).await;
        drop(piece);
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            () = drain.begun() => {}
        }
    }
}
