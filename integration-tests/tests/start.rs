//! Starts without what a service needs: each waits, says for what, and goes on; none leaves anything behind.
#![expect(clippy::unwrap_used, reason = "the helpers of a test fail as it does, by panicking")]

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use axum::Router;
use cutover::release::Release;
use cutover::{Cutover, Instance};
use cutover_testkit::{Postgres, PostgresOptions, Redis, free_port, wait_until};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, PgConnection, PgPool};
use tokio::net::TcpListener;

const LIMIT: Duration = Duration::from_secs(60);

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn service(admin: SocketAddr, url: &str) -> Cutover {
    let pool = PgPoolOptions::new().connect_lazy(url).unwrap();
    let release = Release::new("shop", "1").unwrap();
    Cutover::service("shop").release(release).listen(local(0)).admin(admin).postgres(pool)
}

/// Status and text of an admin page; `None` while nothing listens.
async fn page(admin: SocketAddr, path: &str) -> Option<(u16, String)> {
    let response = reqwest::get(format!("http://{admin}{path}")).await.ok()?;
    Some((response.status().as_u16(), response.text().await.ok()?))
}

/// Starts `service`, calls `end` as soon as `/readyz` says that it waits for the ledger because of `reason`, and returns the page.
async fn waits(
    service: Cutover,
    admin: SocketAddr,
    reason: &str,
    end: impl AsyncFnOnce(),
) -> (Instance, String) {
    let watching = async {
        let text = tokio::time::timeout(LIMIT, waits_with(admin, reason)).await.unwrap();
        assert_eq!(page(admin, "/livez").await.unwrap().0, 200);
        end().await;
        text
    };
    let (started, text) = tokio::join!(tokio::time::timeout(2 * LIMIT, service.start()), watching);
    (started.unwrap().unwrap(), text)
}

async fn waits_with(admin: SocketAddr, reason: &str) -> String {
    loop {
        match page(admin, "/readyz").await {
            Some((503, text)) if text.contains("waiting for the ledger") && text.contains(reason) => {
                return text;
            }
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

#[tokio::test]
async fn a_start_in_an_outage_waits_and_goes_on() {
    let postgres = Postgres::start(PostgresOptions::default()).await.unwrap();
    let url = postgres.create_database("shop").await.unwrap().replace("postgres@", "postgres:hunter2@");
    let redis = Redis::start().await.unwrap();
    let sessions = deadpool_redis::Config::from_url(redis.url()).create_pool(None).unwrap();
    postgres.stop().await.unwrap();
    redis.process().kill().await.unwrap();

    let admin = local(free_port().unwrap());
    let starting = service(admin, &url).redis(sessions);
    let (instance, text) =
        waits(starting, admin, "refused", async || postgres.restart().await.unwrap()).await;
    assert!(text.contains("redis") && !text.contains("hunter2"), "{text}");
    // A dependency that was never reached blocks readiness.
    let ready =
        async || Ok::<_, String>(page(admin, "/readyz/redis").await.is_some_and(|(status, _)| status == 200));
    assert!(!ready().await.unwrap());
    redis.restart().await.unwrap();
    wait_until("redis to be seen", LIMIT, ready).await.unwrap();
    drop(instance);
}

#[tokio::test]
async fn a_start_without_a_free_connection_waits_for_one() {
    let few = [("max_connections", "8"), ("superuser_reserved_connections", "3")];
    let settings = few.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let postgres = Postgres::start(PostgresOptions { settings, ..PostgresOptions::default() }).await.unwrap();
    let url = postgres.create_database("shop").await.unwrap();
    let mut owner = PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("create role app login; alter database shop owner to app")
        .execute(&mut owner)
        .await
        .unwrap();
    let url = url.replace("postgres@", "app@");
    let mut held = Vec::new();
    while let Ok(session) = PgConnection::connect(&url).await {
        held.push(session);
    }
    assert!(held.len() >= 4);

    let admin = local(free_port().unwrap());
    waits(service(admin, &url), admin, "connection slots are reserved", async || drop(held)).await;
}

#[tokio::test]
async fn a_start_with_a_rotated_password_waits_for_the_new_one() {
    let postgres = Postgres::start(PostgresOptions::default()).await.unwrap();
    let url = postgres.create_database("shop").await.unwrap();
    let mut owner = PgConnection::connect(&url).await.unwrap();
    let roles = "create role app login password 'hunter3'; alter database shop owner to app";
    sqlx::raw_sql(roles).execute(&mut owner).await.unwrap();
    let file: String = sqlx::query_scalar("show hba_file").fetch_one(&mut owner).await.unwrap();
    std::fs::write(file, "host all app all scram-sha-256\nhost all all all trust\n").unwrap();
    sqlx::raw_sql("select pg_reload_conf()").execute(&mut owner).await.unwrap();

    let admin = local(free_port().unwrap());
    let starting = service(admin, &url.replace("postgres@", "app:hunter2@"));
    let change = async || {
        sqlx::raw_sql("alter role app password 'hunter2'").execute(&mut owner).await.unwrap();
    };
    let (_, text) = waits(starting, admin, "password authentication failed for user \"app\"", change).await;
    assert!(!text.contains("hunter"), "{text}");
}

#[tokio::test]
async fn a_taken_address_leaves_nothing_in_the_ledger() {
    let postgres = Postgres::start(PostgresOptions::default()).await.unwrap();
    let url = postgres.create_database("shop").await.unwrap();
    let other = TcpListener::bind(local(0)).await.unwrap();
    let taken = other.local_addr().unwrap();
    let instance = service(local(0), &url).listen(taken).start().await.unwrap();
    let ledger = PgPool::connect(&url).await.unwrap();
    let members = "select count(*) from cutover.instances";
    assert_eq!(sqlx::query_scalar::<_, i64>(members).fetch_one(&ledger).await.unwrap(), 1);
    let error = instance.serve(Router::new()).await.unwrap_err().to_string();
    assert!(error.contains(&taken.to_string()) && error.contains("LISTEN_ADDR"), "{error}");
    assert_eq!(sqlx::query_scalar::<_, i64>(members).fetch_one(&ledger).await.unwrap(), 0);

    // The admin address, before anything has begun.
    let error = service(taken, &url).start().await.err().unwrap().to_string();
    assert!(error.contains(&taken.to_string()) && error.contains("ADMIN_ADDR"), "{error}");
    assert_eq!(sqlx::query_scalar::<_, i64>(members).fetch_one(&ledger).await.unwrap(), 0);
}
