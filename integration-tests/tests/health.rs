//! The health pages on a real listener, over servers that are not there or do not answer.

use std::{net::SocketAddr, str::FromStr, time::Duration};

use cutover::{
    drain::{Drain, DrainOptions},
    health::{Check, Health},
};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use tokio::net::TcpListener;

const LIMIT: Duration = Duration::from_secs(10);

async fn admin(health: &Health) -> String {
    let drain = Drain::new(health, DrainOptions::default()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let pages = health.router();
    tokio::spawn(async move { drain.serve_admin(listener, pages).await });
    format!("http://{address}")
}

fn pool(address: SocketAddr) -> PgPool {
    let url = format!("postgres://me:hunter2@{address}/app");
    let options = PgConnectOptions::from_str(&url).unwrap();
    PgPoolOptions::new()
        .max_connections(1)
        .connect_lazy_with(options)
}

/// Asks until the page says `text`.
async fn page_with(url: &str, text: &str) -> (u16, String) {
    let asking = async {
        loop {
            let response = reqwest::get(url).await.unwrap();
            let (status, page) = (response.status().as_u16(), response.text().await.unwrap());
            if page.contains(text) {
                return (status, page);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, asking).await.unwrap()
}

#[tokio::test]
async fn a_database_that_refuses_blocks_readiness_but_not_liveness() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let health = Health::new();
    health.check(Check::postgres(&pool(address))).unwrap();
    let admin = admin(&health).await;

    let (status, page) = page_with(&format!("{admin}/readyz"), "refused").await;
    assert_eq!(status, 503);
    assert!(!page.contains("hunter2"), "{page}");
    let (status, _) = page_with(&format!("{admin}/livez"), "alive").await;
    assert_eq!(status, 200);
    let (status, page) = page_with(&format!("{admin}/healthz"), "postgres").await;
    assert_eq!(status, 503);
    assert!(!page.contains("hunter2"), "{page}");
}

#[tokio::test]
async fn a_database_that_accepts_and_says_nothing_is_a_failure_in_bounded_time() {
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let health = Health::new();
    let check = Check::postgres(&pool(mute.local_addr().unwrap()));
    health
        .check(check.time_limit(Duration::from_millis(200)))
        .unwrap();
    let admin = admin(&health).await;
    let (status, page) = page_with(&format!("{admin}/readyz"), "no answer within 200ms").await;
    assert_eq!((status, health.is_ready()), (503, false), "{page}");
}
