//! Pools that share a small server through a rolling deploy.
#![expect(clippy::unwrap_used, reason = "the helpers of a test fail as it does, by panicking")]

mod shares;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::routing::get;
use cutover::fleet::{Fleet, FleetOptions};
use cutover::health::Health;
use cutover::ledger::Ledger;
use cutover::metrics::Metrics;
use cutover::pool::{Admission, ConnectionShare, PoolGuard, PoolWaitMetrics, ShareError, ShareOptions};
use cutover::release::Release;
use cutover_testkit::{Postgres, PostgresOptions, wait_until};
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{Connection, PgConnection};
use tokio::task::JoinSet;
use tower::ServiceExt;

type Outcome = Result<(), Box<dyn std::error::Error>>;

const LIMIT: Duration = Duration::from_secs(60);

async fn server(connections: u32) -> Postgres {
    let settings = vec![("max_connections".to_owned(), connections.to_string())];
    Postgres::start(PostgresOptions { settings, ..PostgresOptions::default() }).await.unwrap()
}

struct Pod {
    fleet: Fleet,
    pool: PgPool,
    guard: PoolGuard,
    admission: Admission,
    _health: Health,
}

async fn fleet(url: &str, name: &str, health: &Health) -> Fleet {
    let release = Release::new("shop", "1").unwrap().with_instance(name).unwrap();
    let options = FleetOptions { renew_every: Duration::from_millis(800), ..FleetOptions::default() };
    let ledger = Ledger::open(url.parse().unwrap()).await.unwrap();
    Fleet::join(ledger, &release, options, health).await.unwrap()
}

async fn pod(url: &str, name: &str) -> Result<Pod, ShareError> {
    let health = Health::default();
    let fleet = fleet(url, name, &health).await;
    let wanted = ShareOptions { max_connections: 12, start_within: LIMIT, ..ShareOptions::default() };
    let share = ConnectionShare::lease(&fleet, &wanted);
    let options = PgPoolOptions::new().acquire_timeout(LIMIT);
    let (pool, guard) = share.await?.sqlx(options, url.parse().unwrap()).await?;
    let metrics = Metrics::new(fleet.release()).unwrap();
    let admission =
        guard.admission(Duration::from_secs(2), PoolWaitMetrics::register(&metrics, "postgres").unwrap());
    Ok(Pod { fleet, pool, guard, admission, _health: health })
}

/// 50 concurrent requests on one pod, without admission: the pool itself has to keep its limit.
fn load(pool: PgPool, stop: Arc<AtomicBool>, served: Arc<AtomicU64>) -> JoinSet<()> {
    let mut requests = JoinSet::new();
    for _ in 0..50 {
        let (pool, stop, served) = (pool.clone(), Arc::clone(&stop), Arc::clone(&served));
        requests.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                sqlx::query("select pg_sleep(0.01)").execute(&pool).await.unwrap();
                served.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    requests
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_deploy_never_causes_too_many_clients() -> Outcome {
    let postgres = server(40).await;
    let url = postgres.admin_url();
    let mut pods: Vec<(Pod, _, _, _)> = Vec::new();
    for number in 0..5 {
        if let (4, Some((old, ..))) = (number, pods.first()) {
            // The old pod still serves while the new one starts.
            old.guard.drain();
        }
        let pod = pod(&url, &format!("pod-{number}")).await?;
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let requests = load(pod.pool.clone(), Arc::clone(&stop), Arc::clone(&served));
        pods.push((pod, stop, served, requests));
    }
    for (pod, stop, served, mut requests) in pods {
        let before = served.load(Ordering::Relaxed);
        wait_until("a request served", LIMIT, async || {
            Ok::<_, std::io::Error>(served.load(Ordering::Relaxed) > before)
        })
        .await?;
        stop.store(true, Ordering::Relaxed);
        while let Some(request) = requests.join_next().await {
            request?;
        }
        pod.guard.leave().await;
        pod.fleet.leave().await?;
    }
    let log = std::fs::read_to_string(postgres.process().log_path())?;
    assert!(!log.contains("too many clients") && !log.contains("remaining connection slots"), "{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_pod_gives_back_unused_connections() -> Outcome {
    let postgres = server(40).await;
    let pod = pod(&postgres.admin_url(), "pod").await?;
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(pod.pool.acquire().await?);
    }
    pod.guard.drain();
    let mut granted = pod.guard.granted();
    tokio::time::timeout(LIMIT, granted.wait_for(|granted| *granted == 8)).await??;
    // Each request needs a second connection.
    for _ in 0..4 {
        held.push(pod.pool.acquire().await?);
    }
    drop(held);
    tokio::time::timeout(LIMIT, granted.wait_for(|granted| *granted == 2)).await??;
    let _both = (pod.pool.acquire().await?, pod.pool.acquire().await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_the_ledger_are_counted_once() -> Outcome {
    let postgres = server(40).await;
    let url = postgres.admin_url();
    let health = Health::default();
    let release = Release::new("shop", "1")?.with_instance("own")?;
    // The name that `Cutover` gives them.
    let options = url.parse::<sqlx::postgres::PgConnectOptions>()?.application_name("cutover own");
    let ledger = Ledger::open(options).await?;
    let fleet = Fleet::join(ledger, &release, FleetOptions::default(), &health).await?;
    let options = ShareOptions {
        min_connections: 40,
        max_connections: 40,
        start_within: Duration::ZERO,
        ..ShareOptions::default()
    };
    let error = ConnectionShare::lease(&fleet, &options).await.unwrap_err().to_string();
    assert!(error.contains("others use 0"), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connections_of_a_pod_follow_its_share() -> Outcome {
    let postgres = server(40).await;
    let url = postgres.admin_url();
    let first = pod(&url, "first").await?;
    let stop = Arc::new(AtomicBool::new(false));
    let requests = load(first.pool.clone(), Arc::clone(&stop), Arc::default());
    let most = *first.guard.granted().borrow();
    assert_eq!(most, 12);
    let mut session = PgConnection::connect(&url).await?;
    let of = "select count(*) from pg_stat_activity where application_name = $1";
    let second = pod(&url, "second").await?;
    let third = pod(&url, "third").await?;
    let mut shares = first.guard.granted();
    tokio::time::timeout(LIMIT, shares.wait_for(|share| *share < most)).await??;
    let share = i64::from(*shares.borrow());
    wait_until("fewer connections", LIMIT, async || {
        let open: i64 = PgConnection::connect(&url).await?.fetch_count(of, first.guard.name()).await?;
        Ok::<_, sqlx::Error>(open <= share)
    })
    .await?;
    let open: i64 = sqlx::query_scalar(of).bind(first.guard.name()).fetch_one(&mut session).await?;
    assert!(open > 0, "the pool still serves");
    for pod in [second, third] {
        pod.guard.leave().await;
    }
    tokio::time::timeout(LIMIT, shares.wait_for(|share| *share == most)).await??;
    stop.store(true, Ordering::Relaxed);
    requests.join_all().await;
    Ok(())
}

trait FetchCount {
    async fn fetch_count(self, query: &'static str, name: &str) -> Result<i64, sqlx::Error>;
}

impl FetchCount for PgConnection {
    async fn fetch_count(mut self, query: &'static str, name: &str) -> Result<i64, sqlx::Error> {
        sqlx::query_scalar(query).bind(name).fetch_one(&mut self).await
    }
}

#[tokio::test]
async fn a_server_that_is_too_small_is_refused_with_the_numbers() -> Outcome {
    let postgres = server(20).await;
    let health = Health::default();
    let fleet = fleet(&postgres.admin_url(), "big", &health).await;
    let options = ShareOptions {
        min_connections: 30,
        max_connections: 30,
        start_within: Duration::ZERO,
        ..ShareOptions::default()
    };
    let error = ConnectionShare::lease(&fleet, &options).await.unwrap_err().to_string();
    // 20 less 3 reserved, 5 beside the pool and 3 spare.
    assert!(
        error.contains("at least 30") && error.contains(": 9 are left") && error.contains("by 21"),
        "{error}"
    );
    Ok(())
}

#[tokio::test]
async fn admission_refuses_a_request_that_waits_too_long() -> Outcome {
    let postgres = server(40).await;
    let pod = pod(&postgres.admin_url(), "pod").await?;
    let mut held = Vec::new();
    for _ in 0..12 {
        held.push(pod.admission.admit().await?);
    }
    let began = Instant::now();
    assert!(pod.admission.admit().await.is_err());
    assert!(began.elapsed() >= Duration::from_secs(2));
    held.pop();
    drop(pod.admission.admit().await?);
    Ok(())
}

#[tokio::test]
async fn a_full_queue_of_admission_refuses_at_once() -> Outcome {
    let postgres = server(40).await;
    let mut pod = pod(&postgres.admin_url(), "pod").await?;
    pod.admission = pod.admission.queue(1);
    let mut held = Vec::new();
    for _ in 0..12 {
        held.push(pod.admission.admit().await?);
    }
    let mut waiting = std::pin::pin!(pod.admission.admit());
    assert!(futures_util::poll!(&mut waiting).is_pending());
    let refused = futures_util::poll!(std::pin::pin!(pod.admission.admit()));
    assert!(matches!(refused, std::task::Poll::Ready(Err(_))), "it waits beside the one that may");
    held.pop();
    drop(waiting.await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_pods_share_is_granted_after_its_lease() -> Outcome {
    let postgres = server(40).await;
    let url = postgres.admin_url();
    let first = pod(&url, "first").await?;
    let mut shares = first.guard.granted();
    let most = *shares.borrow();
    let (its_url, runtime) = (url.clone(), tokio::runtime::Runtime::new()?);
    let start = runtime.spawn(async move {
        let doomed = (pod(&its_url, "second").await.unwrap(), pod(&its_url, "third").await.unwrap());
        let (second, third) = (&doomed.0.pool, &doomed.1.pool);
        sqlx::query("select 1").execute(second).await.unwrap();
        sqlx::query("select 1").execute(third).await.unwrap();
        doomed
    });
    let doomed = start.await?;
    tokio::time::timeout(LIMIT, shares.wait_for(|share| *share < most)).await??;
    // Everything stops at once, as after `kill -9`, and the system closes the sockets.
    tokio::task::spawn_blocking(move || {
        let entered = runtime.enter();
        drop(doomed);
        drop(entered);
        runtime.shutdown_background();
    })
    .await?;
    let left = "select count(*) from cutover.connection_shares";
    let mut session = PgConnection::connect(&url).await?;
    assert!(
        sqlx::query_scalar::<_, i64>(left).fetch_one(&mut session).await? > 1,
        "the shares must still be in the ledger"
    );
    tokio::time::timeout(LIMIT, shares.wait_for(|share| *share == most)).await??;
    Ok(())
}

#[tokio::test]
async fn the_limits_of_roles_and_databases_apply() -> Outcome {
    let postgres = server(60).await;
    let url = postgres.create_database("shop").await?;
    let admin = fleet(&url, "admin", &Health::default()).await;
    admin.leave().await?;
    let mut session = PgConnection::connect(&url).await?;
    for statement in [
        "create role app login connection limit 13",
        "grant usage on schema cutover to app",
        "grant all on all tables in schema cutover to app",
        "grant all on all sequences in schema cutover to app",
    ] {
        sqlx::query(statement).execute(&mut session).await?;
    }
    let request = || ShareOptions {
        min_connections: 30,
        max_connections: 30,
        start_within: Duration::ZERO,
        ..ShareOptions::default()
    };
    let health = Health::default();
    let app = fleet(&url.replace("postgres@", "app@"), "app", &health).await;
    let error = ConnectionShare::lease(&app, &request()).await.unwrap_err().to_string();
    assert!(error.contains("the role's connection limit is 13"), "{error}");
    sqlx::query("alter role app connection limit -1").execute(&mut session).await?;
    sqlx::query("alter database shop connection limit 17").execute(&mut session).await?;
    let error = ConnectionShare::lease(&app, &request()).await.unwrap_err().to_string();
    assert!(error.contains("the database's connection limit is 17"), "{error}");
    sqlx::query("alter database shop connection limit -1").execute(&mut session).await?;
    ConnectionShare::lease(&app, &request()).await?;
    Ok(())
}

#[tokio::test]
async fn as_a_layer_admission_answers_503() -> Outcome {
    let postgres = server(40).await;
    let pod = pod(&postgres.admin_url(), "pod").await?;
    let metrics = Metrics::new(pod.fleet.release())?;
    let admission =
        pod.guard.admission(Duration::from_millis(200), PoolWaitMetrics::register(&metrics, "postgres")?);
    let (pool, gate) = (pod.pool.clone(), Arc::new(tokio::sync::Semaphore::new(0)));
    let handler = {
        let gate = Arc::clone(&gate);
        move || async move {
            let _open = gate.acquire().await;
            sqlx::query("select 1").execute(&pool).await.map(|_| "done").map_err(|_| StatusCode::BAD_GATEWAY)
        }
    };
    let app = Router::new().route("/", get(handler)).layer(admission);
    let ask = || app.clone().oneshot(Request::new(Body::empty()));
    let mut held: Vec<_> = (0..12).map(|_| tokio::spawn(ask())).collect();
    wait_until("twelve requests inside", LIMIT, async || {
        Ok::<_, std::io::Error>(pod.admission.admit().await.is_err())
    })
    .await?;
    let refused = ask().await?;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(pod.pool.num_idle() + usize::try_from(pod.pool.size())?, 0, "no connection was opened");
    gate.add_permits(1_000);
    for request in held.drain(..) {
        assert_eq!(request.await??.status(), StatusCode::OK);
    }
    assert_eq!(ask().await?.status(), StatusCode::OK);
    Ok(())
}

#[tokio::test]
async fn a_deadpool_pool_follows_its_share() -> Outcome {
    let postgres = server(40).await;
    let url = postgres.admin_url();
    let health = Health::default();
    let own = fleet(&url, "dead", &health).await;
    let wanted = ShareOptions { max_connections: 12, start_within: LIMIT, ..ShareOptions::default() };
    let share = ConnectionShare::lease(&own, &wanted).await?;
    let (pool, guard) = share.deadpool(url.parse()?, tokio_postgres::NoTls)?;
    assert_eq!(pool.status().max_size, 12);
    let others = [pod(&url, "second").await?, pod(&url, "third").await?];
    let mut shares = guard.granted();
    tokio::time::timeout(LIMIT, shares.wait_for(|share| *share < 12)).await??;
    let share = usize::try_from(*shares.borrow())?;
    wait_until("a smaller pool", LIMIT, async || Ok::<_, std::io::Error>(pool.status().max_size <= share))
        .await?;
    for pod in others {
        pod.guard.leave().await;
    }
    tokio::time::timeout(LIMIT, shares.wait_for(|share| *share == 12)).await??;
    guard.leave().await;
    assert!(pool.is_closed());
    Ok(())
}
