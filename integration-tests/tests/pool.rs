//! Pools that share a small server through a rolling deploy.
#![expect(clippy::unwrap_used, reason = "the helpers of a test fail as it does, by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cutover::fleet::{Fleet, FleetOptions, Ledger};
use cutover::health::Health;
use cutover::metrics::Metrics;
use cutover::pool::{Admission, ConnectionShare, PoolGuard, ShareError, ShareOptions, Waits};
use cutover::release::Release;
use cutover_testkit::{Postgres, PostgresOptions, wait_until};
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{Connection, PgConnection};
use tokio::task::JoinSet;

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
    let wanted = ShareOptions { highest: 12, start_within: LIMIT, ..ShareOptions::default() };
    let share = ConnectionShare::lease(&fleet, &wanted);
    let options = PgPoolOptions::new().acquire_timeout(LIMIT);
    let (pool, guard) = share.await?.sqlx(options, url.parse().unwrap()).await?;
    let metrics = Metrics::new(fleet.release()).unwrap();
    let admission = guard.admission(Duration::from_secs(2), Waits::register(&metrics, "postgres").unwrap());
    Ok(Pod { fleet, pool, guard, admission, _health: health })
}

/// 50 requests at a time on one pod, around its admission: the pool itself has to hold.
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
async fn a_rolling_deploy_with_surge_and_slow_endings_never_meets_too_many_clients() -> Outcome {
    let postgres = server(40).await;
    let url = postgres.admin_url();
    let mut pods: Vec<(Pod, _, _, _)> = Vec::new();
    for number in 0..5 {
        if let (4, Some((old, ..))) = (number, pods.first()) {
            // It still serves while the surge starts.
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
async fn the_servers_connections_follow_the_share() -> Outcome {
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
    assert!(open > 0, "it goes on");
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
async fn a_server_that_is_too_small_is_an_error_with_the_numbers() -> Outcome {
    let postgres = server(20).await;
    let health = Health::default();
    let fleet = fleet(&postgres.admin_url(), "big", &health).await;
    let options =
        ShareOptions { lowest: 30, highest: 30, start_within: Duration::ZERO, ..ShareOptions::default() };
    let error = ConnectionShare::lease(&fleet, &options).await.unwrap_err().to_string();
    // 20 less 3 reserved, 5 beside the pool and 3 spare.
    assert!(
        error.contains("at least 30") && error.contains(": 9 are left") && error.contains("by 21"),
        "{error}"
    );
    Ok(())
}

#[tokio::test]
async fn who_would_wait_too_long_is_turned_away_in_time() -> Outcome {
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
