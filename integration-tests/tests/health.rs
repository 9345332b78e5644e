//! Checks of real servers that are reachable, busy, frozen, stopped and restarted.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::{future::pending, net::SocketAddr, str::FromStr, sync::Arc, time::Duration};

use axum::{Router, http::StatusCode, routing::get};
use cutover::{
    Cutover,
    drain::{Drain, DrainOptions},
    fleet::FleetOptions,
    health::{Check, Criticality, Health},
    migration::{MigrationSpec, PhaseRange},
    release::Release,
};
use cutover_testkit::{
    PgBouncer, Postgres, PostgresOptions, Redis, RedisCluster, RedisSentinel, Signal, wait_until,
};
use deadpool_redis::redis::cmd;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use tokio::net::TcpListener;
use tonic::{Code, service::Routes, transport::Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

const LIMIT: Duration = Duration::from_secs(60);
/// Of one probe. A busy machine answers later than the service would accept.
const PROBE: Duration = Duration::from_secs(3);

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
    PgPoolOptions::new().max_connections(1).connect_lazy_with(options)
}

/// Polls the page until it contains `text`.
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
async fn a_database_that_never_answers_fails_within_the_limit() {
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let health = Health::new();
    let check = Check::postgres(&pool(mute.local_addr().unwrap()));
    health.check(check.time_limit(Duration::from_millis(200))).unwrap();
    let admin = admin(&health).await;
    let (status, page) = page_with(&format!("{admin}/readyz"), "no answer within 200ms").await;
    assert_eq!((status, health.is_ready()), (503, false), "{page}");
}

fn quick(check: Check) -> Check {
    check.interval(Duration::from_millis(50)).time_limit(PROBE).failing_after(2, Duration::from_millis(100))
}

async fn until_ready(health: &Health, ready: bool) {
    let mut changes = health.changes();
    let change = changes.wait_for(|now| *now == ready);
    tokio::time::timeout(LIMIT, change).await.unwrap().unwrap();
}

async fn start_postgres() -> Postgres {
    let options = PostgresOptions { fsync: false, ..PostgresOptions::default() };
    Postgres::start(options).await.unwrap()
}

#[tokio::test]
async fn a_used_up_pool_warns_and_a_stopped_server_fails() {
    let postgres = start_postgres().await;
    let pool = PgPoolOptions::new().max_connections(1).connect_lazy(&postgres.admin_url()).unwrap();
    let busy = pool.acquire().await.unwrap();
    let health = Health::new();
    let check = quick(Check::postgres(&pool)).criticality(Criticality::Critical);
    health.check(check).unwrap();
    let admin = admin(&health).await;
    until_ready(&health, true).await;
    let url = format!("{admin}/readyz/postgres");
    let (status, page) = page_with(&url, "in use").await;
    assert_eq!((status, page.lines().next()), (200, Some("ready")));
    drop(busy);
    page_with(&url, "pass postgres: ok").await;

    postgres.stop().await.unwrap();
    until_ready(&health, false).await;
    postgres.restart().await.unwrap();
    until_ready(&health, true).await;

    postgres.pause().unwrap();
    until_ready(&health, false).await;
    page_with(&url, "no answer within 3s").await;
    postgres.resume().unwrap();
    until_ready(&health, true).await;
}

#[tokio::test]
async fn all_probes_share_one_connection() {
    let postgres = start_postgres().await;
    let pool = PgPool::connect(&postgres.admin_url()).await.unwrap();
    let health = Health::new();
    // A probe that is cut off would leave its connection.
    health.check(quick(Check::postgres(&pool)).time_limit(LIMIT)).unwrap();
    until_ready(&health, true).await;
    let count = async || -> Vec<i32> {
        let all = "select pid from pg_stat_activity where application_name = 'cutover-health'";
        sqlx::query_scalar(all).fetch_all(&pool).await.unwrap()
    };
    let before = count().await;
    assert_eq!(before.len(), 1);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(count().await, before, "about ten probes later");
}

#[tokio::test]
async fn the_probe_works_through_a_transaction_pooler() {
    let postgres = start_postgres().await;
    let bouncer = PgBouncer::start(&postgres, 2).await.unwrap();
    let pool = PgPool::connect_lazy(&bouncer.url("postgres")).unwrap();
    let health = Health::new();
    let check = quick(Check::postgres(&pool)).time_limit(LIMIT).failing_after(1, Duration::ZERO);
    health.check(check.criticality(Criticality::Critical)).unwrap();
    until_ready(&health, true).await;
    let mut changes = health.changes();
    let unready = changes.wait_for(|now| !now);
    let stays = tokio::time::timeout(Duration::from_millis(500), unready).await;
    assert!(stays.is_err(), "about ten probes, none failed");
}

#[tokio::test]
async fn the_redis_check_follows_freezes_and_restarts() {
    let redis = Redis::start().await.unwrap();
    let config = deadpool_redis::Config::from_url(redis.url());
    let pool =
        config.builder().unwrap().max_size(1).runtime(deadpool_redis::Runtime::Tokio1).build().unwrap();
    let busy = pool.get().await.unwrap();
    let waiting = tokio::spawn({
        let pool = pool.clone();
        async move { drop(pool.get().await) }
    });
    let health = Health::new();
    let check = quick(Check::redis(&pool)).criticality(Criticality::Critical);
    health.check(check).unwrap();
    let admin = admin(&health).await;
    until_ready(&health, true).await;
    let url = format!("{admin}/readyz/redis");
    page_with(&url, "1 requests wait for one of the pool's 1 connections").await;
    drop(busy);
    waiting.await.unwrap();
    page_with(&url, "pass redis: ok").await;

    redis.process().signal(Signal::STOP).unwrap();
    until_ready(&health, false).await;
    redis.process().signal(Signal::CONT).unwrap();
    until_ready(&health, true).await;
    redis.restart().await.unwrap();
    page_with(&url, "pass redis: ok").await;
    redis.process().kill().await.unwrap();
    until_ready(&health, false).await;
    redis.restart().await.unwrap();
    until_ready(&health, true).await;
}

#[tokio::test]
async fn a_redis_that_was_demoted_alive_fails_the_check() {
    let (primary, other) = (Redis::start().await.unwrap(), Redis::start().await.unwrap());
    let pool = deadpool_redis::Config::from_url(primary.url()).create_pool(None).unwrap();
    let health = Health::new();
    health.check(quick(Check::redis(&pool)).criticality(Criticality::Critical)).unwrap();
    let admin = admin(&health).await;
    until_ready(&health, true).await;
    let mut connection = pool.get().await.unwrap();
    let ttl: i64 = cmd("TTL").arg("cutover:health").query_async(&mut connection).await.unwrap();
    assert!((1..=60).contains(&ttl), "the key of the check expires: {ttl}");

    let port = other.url().trim_end_matches('/').rsplit(':').next().unwrap().to_owned();
    let mut replicate = cmd("REPLICAOF");
    let () = replicate.arg("127.0.0.1").arg(port).query_async(&mut connection).await.unwrap();
    until_ready(&health, false).await;
    page_with(&format!("{admin}/readyz"), "the server refuses writes because it is a replica").await;
    let () = cmd("REPLICAOF").arg("NO").arg("ONE").query_async(&mut connection).await.unwrap();
    until_ready(&health, true).await;
}

#[tokio::test]
async fn the_check_follows_sentinel_and_a_cluster() {
    let sentinel = RedisSentinel::start().await.unwrap();
    let config = deadpool_redis::sentinel::Config::from_urls(
        vec![sentinel.url()],
        "primary".to_owned(),
        deadpool_redis::sentinel::SentinelServerType::Master,
    );
    let cluster = RedisCluster::start().await.unwrap();
    let in_cluster = deadpool_redis::cluster::Config::from_urls(cluster.urls()).create_pool(None).unwrap();
    let health = Health::new();
    for check in [
        Check::redis(config.create_pool(None).unwrap()).named("sentinel"),
        Check::redis(in_cluster).named("cluster"),
        // One server of the cluster, as if it were the only one.
        Check::redis(deadpool_redis::Config::from_url(cluster.urls().remove(1)).create_pool(None).unwrap())
            .named("node"),
    ] {
        // Shorter than a failover, which would otherwise be a slow answer.
        let check = quick(check).time_limit(Duration::from_millis(500));
        health.check(check.criticality(Criticality::Critical)).unwrap();
    }
    let admin = admin(&health).await;
    let url = format!("{admin}/readyz?verbose");
    page_with(&url, "pass sentinel: ok").await;
    page_with(&url, "pass cluster: ok").await;
    let slot = cluster.primaries()[0].command("CLUSTER KEYSLOT cutover:health").await.unwrap();
    let owner = RedisCluster::first_owner(slot.parse().unwrap());
    assert_eq!(owner, 0, "the first server has the key of the check, and a replica");
    page_with(&url, "use a pool of `deadpool_redis::cluster`").await;

    let [first, second] = sentinel.servers();
    first.process().signal(Signal::STOP).unwrap();
    cluster.primaries()[0].process().kill().await.unwrap();
    // In any order, and each only until its failover.
    tokio::join!(page_with(&url, "fail sentinel"), page_with(&url, "fail cluster"));
    sentinel.wait_for(second).await.unwrap();
    page_with(&url, "pass sentinel: ok").await;
    cluster.wait_for_replica().await.unwrap();
    page_with(&url, "pass cluster: ok").await;
    first.process().signal(Signal::CONT).unwrap();
}

#[tokio::test]
async fn a_redis_user_without_the_key_of_the_check_is_a_warning() {
    let redis = Redis::start().await.unwrap();
    let pool = deadpool_redis::Config::from_url(redis.url()).create_pool(None).unwrap();
    let mut connection = pool.get().await.unwrap();
    let mut user = cmd("ACL");
    user.arg(&["SETUSER", "app", "on", ">hunter2", "~session:*", "+@all"]);
    let () = user.query_async(&mut connection).await.unwrap();
    let url = redis.url().replace("redis://", "redis://app:hunter2@");
    let pool = deadpool_redis::Config::from_url(url).create_pool(None).unwrap();
    let health = Health::new();
    health.check(quick(Check::redis(&pool)).criticality(Criticality::Critical)).unwrap();
    let admin = admin(&health).await;
    until_ready(&health, true).await;
    page_with(&format!("{admin}/readyz/redis"), "run: ACL SETUSER <user> ~cutover:health +set").await;
}

#[tokio::test]
async fn a_used_up_deadpool_warns_and_a_frozen_server_fails() {
    let postgres = start_postgres().await;
    let manager =
        deadpool_postgres::Manager::new(postgres.admin_url().parse().unwrap(), tokio_postgres::NoTls);
    let pool = deadpool_postgres::Pool::builder(manager).max_size(1).build().unwrap();
    let busy = pool.get().await.unwrap();
    let waiting = tokio::spawn({
        let pool = pool.clone();
        async move { drop(pool.get().await) }
    });
    let health = Health::new();
    let check = quick(Check::deadpool_postgres(&pool)).criticality(Criticality::Critical);
    health.check(check).unwrap();
    let admin = admin(&health).await;
    until_ready(&health, true).await;
    let url = format!("{admin}/readyz/postgres");
    page_with(&url, "1 requests wait for one of the pool's 1 connections").await;
    drop(busy);
    waiting.await.unwrap();
    page_with(&url, "pass postgres: ok").await;

    postgres.pause().unwrap();
    until_ready(&health, false).await;
    postgres.resume().unwrap();
    until_ready(&health, true).await;
}

/// Whether an instance with a migration in this phase is ready after its lease expired because Postgres was frozen.
async fn ready_without_a_lease(phase: &str) -> bool {
    let postgres = start_postgres().await;
    let pool = PgPool::connect(&postgres.admin_url()).await.unwrap();
    let release = Release::new("payments", "stable").unwrap();
    let lease = Duration::from_secs(3);
    let instance = Cutover::service("payments")
        .release(release)
        .admin(([127, 0, 0, 1], 0).into())
        .postgres(pool.clone())
        .fleet(FleetOptions { lease, renew_every: Duration::from_secs(1), ..FleetOptions::default() })
        .migration(MigrationSpec::new("status", PhaseRange::FULL))
        .start()
        .await
        .unwrap();
    let instance = Arc::new(instance);
    let worker = Arc::clone(&instance);
    tokio::spawn(async move { worker.serve_admin().await });
    let admin = admin(instance.health()).await;
    until_ready(instance.health(), true).await;
    sqlx::query("update cutover.migrations set desired = $1").bind(phase).execute(&pool).await.unwrap();
    let migration = instance.migration("status").unwrap();
    wait_until("the phase", LIMIT, async || {
        let at = migration.current().map(|(_, phase)| phase.to_string());
        Ok::<_, std::convert::Infallible>(at.as_deref() == Some(phase))
    })
    .await
    .unwrap();

    postgres.pause().unwrap();
    page_with(&format!("{admin}/readyz/lease"), "lease expired").await;
    page_with(&format!("{admin}/readyz/deploy_guard"), "not a member of the fleet").await;
    let ready = instance.health().is_ready();
    postgres.resume().unwrap();
    until_ready(instance.health(), true).await;
    ready
}

#[tokio::test]
async fn a_lost_lease_does_not_matter_before_a_migration_starts() {
    assert!(ready_without_a_lease("off").await);
}

#[tokio::test]
async fn a_lost_lease_makes_an_instance_unready_during_a_migration() {
    assert!(!ready_without_a_lease("expand").await);
}

async fn dependency(app: impl cutover::drain::App) -> SocketAddr {
    let drain = Drain::new(&Health::new(), DrainOptions::default()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { drain.serve(listener, app).await });
    address
}

#[tokio::test]
async fn an_http_dependency_passes_by_status_within_the_limit() {
    let app = Router::new()
        .route("/works", get(|| async { "ok" }))
        .route("/fails", get(|| async { StatusCode::SERVICE_UNAVAILABLE }))
        .route("/hangs", get(pending::<()>));
    let address = dependency(app).await;
    let health = Health::new();
    for name in ["works", "fails", "hangs"] {
        health.check(quick(Check::http(name, &format!("http://{address}/{name}")).unwrap())).unwrap();
    }
    let admin = admin(&health).await;
    for (name, line) in [
        ("works", "pass works: ok"),
        ("fails", "fail fails: answered 503"),
        ("hangs", "fail hangs: no answer within 3s"),
    ] {
        page_with(&format!("{admin}/readyz/{name}"), line).await;
    }
}

/// One instance checks another over gRPC.
#[tokio::test]
async fn a_grpc_dependency_passes_when_it_is_serving() {
    let theirs = Health::new();
    let lease = theirs.signal("orders", Criticality::Critical);
    let address = dependency(Routes::new(theirs.grpc())).await;
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    let health = Health::new();
    for service in ["", "orders", "unknown"] {
        let check = Check::grpc(format!("their {service}"), &endpoint, service);
        health
            .check(quick(check).failing_after(1, Duration::ZERO).criticality(Criticality::Critical))
            .unwrap();
    }
    let admin = admin(&health).await;
    let page = async |service: &str, says: &str| {
        page_with(&format!("{admin}/readyz/their%20{service}"), says).await;
    };
    page("", "answered NOT_SERVING").await;
    page("orders", "answered NOT_SERVING").await;
    page("unknown", "no check, signal or group has the name of this service").await;
    lease.ok();
    page("", ": ok").await;
    page("orders", ": ok").await;
    lease.fail("lost");
    page("", "answered NOT_SERVING").await;
}

async fn grpc(health: &Health) -> HealthClient<tonic::transport::Channel> {
    let address = dependency(Routes::new(health.grpc())).await;
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    HealthClient::new(endpoint.connect().await.unwrap())
}

fn about(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

/// The numbers are those of the protocol: 1 SERVING, 2 NOT_SERVING, 3 SERVICE_UNKNOWN.
#[tokio::test]
async fn the_grpc_health_service_follows_the_protocol() {
    let health = Health::new();
    let drain = Drain::new(&health, DrainOptions::default()).unwrap();
    let latch = health.latch("start");
    let mut client = grpc(&health).await;
    let now = client.check(about("")).await.unwrap().into_inner().status;
    assert_eq!(now, 2, "no service is SERVING during the start");
    assert_eq!(client.check(about("orders")).await.unwrap_err().code(), Code::NotFound);

    let mut server = client.watch(about("")).await.unwrap().into_inner();
    let mut service = client.watch(about("orders")).await.unwrap().into_inner();
    async fn next(watch: &mut tonic::Streaming<tonic_health::pb::HealthCheckResponse>) -> i32 {
        let message = tokio::time::timeout(LIMIT, watch.message()).await.unwrap();
        message.unwrap().unwrap().status
    }
    assert_eq!(next(&mut server).await, 2);
    assert_eq!(next(&mut service).await, 3, "a watch of an unknown service continues");

    let orders = health.signal("orders", Criticality::Critical);
    assert_eq!(next(&mut service).await, 2, "and receives its status when it is added");
    orders.ok();
    drop(latch);
    assert_eq!((next(&mut server).await, next(&mut service).await), (1, 1));
    orders.ok();
    orders.warn("slow");
    orders.fail("lost");
    assert_eq!((next(&mut server).await, next(&mut service).await), (2, 2), "only changes are sent");

    // During a drain every service is NOT_SERVING, whatever its own status is.
    orders.ok();
    assert_eq!((next(&mut server).await, next(&mut service).await), (1, 1));
    drain.begin();
    assert_eq!((next(&mut server).await, next(&mut service).await), (2, 2));
}
