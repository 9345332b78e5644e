use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use cutover::drain::{Drain, DrainOptions};
use cutover::health::{Check, Health};
use cutover_testkit::{Load, wait_until};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::net::TcpListener;

use super::table::Table;
use super::timing::quantile;
use super::world::{self, LIMIT};

/// What common health crates do: the page queries the database through the service's pool.
async fn asks_the_pool(State(pool): State<PgPool>) -> StatusCode {
    match sqlx::query("select 1").execute(&pool).await {
        Ok(_) => StatusCode::OK,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

async fn served(app: Router) -> Result<SocketAddr> {
    let drain = Drain::new(&Health::new(), DrainOptions::default())?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { drain.serve(listener, app).await });
    Ok(address)
}

pub(crate) async fn run(quick: bool, rate: u32) -> Result<()> {
    let seconds = Duration::from_secs(if quick { 2 } else { 10 });
    let postgres = world::server(&[]).await?;
    let url = postgres.create_database("bench").await?;
    let pool =
        || PgPoolOptions::new().max_connections(10).acquire_timeout(Duration::from_secs(30)).connect(&url);
    let health = Health::new();
    health.check(Check::postgres(&pool().await?).interval(Duration::from_secs(1)))?;
    wait_until("the first probe", LIMIT, async || anyhow::Ok(health.is_ready())).await?;
    let ours = served(health.router()).await?;
    let theirs = served(Router::new().route("/readyz", get(asks_the_pool)).with_state(pool().await?)).await?;

    let mut table = Table::new(
        "`/readyz` while Postgres hangs (ms, timed from when a request was due)",
        &["requests/s", "requests", "not answered", "p50", "p99", "max", "over 10 ms"],
    );
    for (state, hangs) in [("up", false), ("hanging", true)] {
        if hangs {
            postgres.pause()?;
        }
        // The peer holds each connection until its pool's time limit, so few requests are enough.
        for (name, address, rate) in
            [("cutover", ours, rate), ("query through the pool", theirs, rate.min(200))]
        {
            let load = Load::start(address, "/readyz", 200, rate, 32);
            tokio::time::sleep(seconds).await;
            let shots = load.stop().await;
            ensure!(!shots.is_empty(), "nothing was sent");
            let mut took: Vec<f64> = shots.iter().map(|shot| shot.took.as_secs_f64() * 1e3).collect();
            let failed = shots.iter().filter(|shot| shot.failure.is_some()).count();
            let slow = took.iter().filter(|millis| **millis > 10.0).count();
            let sent = shots.len() as f64 / seconds.as_secs_f64();
            table.row(
                format!("{name}, Postgres {state}"),
                vec![
                    sent,
                    shots.len() as f64,
                    failed as f64,
                    quantile(&mut took, 0.5),
                    quantile(&mut took, 0.99),
                    quantile(&mut took, 1.0),
                    slow as f64,
                ],
            );
        }
    }
    postgres.resume()?;
    table.publish("readyz")
}
