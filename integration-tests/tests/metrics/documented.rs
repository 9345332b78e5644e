//! The guide's list of metrics, against the page of a running service.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use axum::routing::get;
use cutover::flags::{Flags, UnleashOptions};
use cutover::fleet::{Fleet, FleetOptions};
use cutover::health::Health;
use cutover::ledger::Ledger;
use cutover::migration::{DualWrite, Error, Key, MigrationSpec, PhaseRange, Rows};
use cutover::pool::{ConnectionShare, PoolWaitMetrics, ShareOptions};
use cutover::release::Release;
use cutover::{Cutover, Instance};
use cutover_testkit::{Postgres, PostgresOptions, Redis, wait_until};
use sqlx::postgres::{PgPool, PgPoolOptions};
use tokio::net::TcpListener;
use tower::ServiceExt;

type Outcome = Result<(), Box<dyn std::error::Error>>;

const LIMIT: Duration = Duration::from_secs(60);

/// The names and labels in the tables of `docs/metrics.md`.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let mut families = BTreeMap::new();
    for line in include_str!("../../../docs/metrics.md").lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        // The table of the process has no labels.
        let labels = if cells.len() > 4 { cells[2] } else { "" };
        let labels: BTreeSet<String> =
            labels.split(", ").filter(|label| !label.is_empty()).map(str::to_owned).collect();
        for name in cells[1].split('`').skip(1).step_by(2) {
            families.insert(name.to_owned(), labels.clone());
        }
    }
    families
}

/// The names and labels in a page.
fn families(page: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut families = BTreeMap::new();
    let names = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    for name in names {
        let of_family = |line: &&str| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| {
                ["{", " ", "_count{", "_count "].iter().any(|next| rest.starts_with(next))
            })
        };
        let sample = page.lines().find(of_family).unwrap_or_default();
        let labels = sample.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
        let labels = labels.map(|(labels, _)| labels).unwrap_or_default();
        let labels = labels.split("\",").filter_map(|label| label.split('=').next());
        let labels = labels.filter(|label| !label.is_empty()).map(str::to_owned).collect();
        families.insert(name.to_owned(), labels);
    }
    families
}

async fn page(instance: &Instance) -> String {
    let request = Request::get("/metrics").body(Body::empty()).unwrap();
    let answer = instance.metrics().router().oneshot(request).await.unwrap();
    String::from_utf8(to_bytes(answer.into_body(), 1 << 20).await.unwrap().to_vec()).unwrap()
}

/// A service with every part, whose first migration is steered by a flag that does not exist.
async fn service(postgres: &Postgres, redis: &Redis) -> Result<Instance, Box<dyn std::error::Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let unleash = format!("http://{}", listener.local_addr()?);
    let features = Router::new().fallback(get(|| async { r#"{"version":2,"features":[]}"# }));
    tokio::spawn(async move { axum::serve(listener, features).await });
    let flags = Flags::unleash(UnleashOptions::new(unleash, "token", "shop", "a"))?;
    let pool = PgPoolOptions::new().connect_lazy(&postgres.create_database("shop").await?)?;
    let redis = deadpool_redis::Config::from_url(redis.url()).create_pool(None)?;
    let address = "127.0.0.1:0".parse()?;
    let instance = Cutover::service("shop")
        .release(Release::new("shop", "1")?.with_instance("a")?)
        .listen(address)
        .admin(address)
        .buckets([1, 2, 5].map(Duration::from_millis))
        .process_metrics()
        .postgres(pool)
        .redis(redis)
        .flags(flags)
        .migration_by_flag(MigrationSpec::new("by_flag", PhaseRange::FULL), "phase")
        .migration(MigrationSpec::new("status", PhaseRange::FULL))
        .start()
        .await?;
    instance.admitted().await;
    Ok(instance)
}

/// One call of each side, with each outcome.
async fn use_both_sides(instance: &Instance) -> Outcome {
    let sides = DualWrite::new(instance.migration("status").ok_or("no migration")?, (), ());
    let pool = instance.postgres()?;
    let mut tx = sides.migration().begin(&pool).await?;
    let written = sides.write_with(
        &mut tx,
        Rows::one(&1),
        async |(), _| Ok::<_, Error>(()),
        async |(), _| Err(Error::NotInFleet),
    );
    assert!(written.await.is_err());
    tx.rollback().await?;
    let read = async |old: Result<(), Error>| {
        sides.read_with(Key::of(&1), async |()| old, async |()| Ok::<_, Error>(())).await
    };
    read(Ok(())).await?;
    assert!(read(Err(Error::NotInFleet)).await.is_err());
    let endless =
        sides.read_with(Key::of(&1), async |()| std::future::pending().await, async |()| Ok::<_, Error>(()));
    assert!(tokio::time::timeout(Duration::from_millis(20), endless).await.is_err());
    Ok(())
}

async fn move_to_expand(instance: &Instance, pool: &PgPool) -> Outcome {
    sqlx::raw_sql("update cutover.migrations set desired = 'expand' where name = 'status'")
        .execute(pool)
        .await?;
    let migration = instance.migration("status").ok_or("no migration")?;
    let is_there = || migration.current().is_some_and(|(_, phase)| phase.name() == "expand");
    wait_until("phase expand", LIMIT, async || Ok::<_, std::convert::Infallible>(is_there())).await?;
    Ok(())
}

#[tokio::test]
async fn the_guide_lists_every_metric_of_a_service() -> Outcome {
    let (postgres, redis) = (Postgres::start(PostgresOptions::default()).await?, Redis::start().await?);
    let instance = service(&postgres, &redis).await?;
    let pool = instance.postgres()?;

    let mut expected = documented();
    // An own pool has no share. It is added by hand.
    let release = Release::new("shop", "1")?.with_instance("b")?;
    let ledger = Ledger::open((*pool.connect_options()).clone()).await?;
    let fleet = Fleet::join(ledger, &release, FleetOptions::default(), &Health::new()).await?;
    let share = ConnectionShare::lease(&fleet, &ShareOptions::default()).await?;
    let (_, guard) = share.sqlx(PgPoolOptions::new(), (*pool.connect_options()).clone()).await?;
    guard.register(instance.metrics().registry(), "postgres")?;
    PoolWaitMetrics::register(instance.metrics(), "postgres")?;
    fleet.leave().await?;

    // There is no series before its first event.
    assert!(expected.remove("cutover_migration_throttled_seconds_total").is_some());
    let _ = instance.flags().variant("phase", &cutover::flags::Subject::new());
    // What background tasks count appears a moment later.
    wait_until("a page with the metrics of docs/metrics.md", LIMIT, async || {
        let found = families(&page(&instance).await);
        if found == expected { Ok(true) } else { Err(format!("{found:#?} instead of {expected:#?}")) }
    })
    .await?;

    move_to_expand(&instance, &pool).await?;
    use_both_sides(&instance).await?;
    let expected = [
        "cutover_ready 0",
        "cutover_check_status{check=\"start\",status=\"fail\"} 1",
        "cutover_check_status{check=\"drain\",status=\"pass\"} 1",
        "cutover_drain_stage{stage=\"serving\"} 1",
        "cutover_drain_stage{stage=\"finished\"} 0",
        "cutover_http_connections 0",
        "cutover_pool_share_max_connections{pool=\"postgres\"} 10",
        "cutover_flags_fresh 1",
        "cutover_migration_phase{migration=\"status\",phase=\"expand\"} 1",
        "cutover_migration_phase{migration=\"status\",phase=\"off\"} 0",
        "cutover_migration_phase{migration=\"by_flag\",phase=\"off\"} 1",
        "cutover_migration_epoch{migration=\"status\"} 2",
        "cutover_migration_driver{migration=\"status\"} 1",
        "cutover_migration_flag_held{flag=\"phase\",migration=\"by_flag\",reason=\"missing\"} 1",
        "cutover_migration_flag_held{flag=\"phase\",migration=\"by_flag\",reason=\"flapping\"} 0",
        "cutover_side_duration_seconds_count{migration=\"status\",operation=\"read\",side=\"old\",version=\"1\"} 3",
        "cutover_side_duration_seconds_count{migration=\"status\",operation=\"write\",side=\"new\",version=\"1\"} 1",
        "cutover_side_failures_total{migration=\"status\",operation=\"read\",reason=\"error\",side=\"old\",version=\"1\"} 1",
        "cutover_side_failures_total{migration=\"status\",operation=\"read\",reason=\"dropped\",side=\"old\",version=\"1\"} 1",
        "cutover_side_failures_total{migration=\"status\",operation=\"write\",reason=\"error\",side=\"new\",version=\"1\"} 1",
        "cutover_side_failures_total{migration=\"status\",operation=\"write\",reason=\"error\",side=\"old\",version=\"1\"} 0",
        "http_request_duration_seconds_bucket{method=\"GET\",route=\"unmatched\",status=\"200\",version=\"1\",le=\"0.002\"} 0",
    ];
    wait_until("a page with these values", LIMIT, async || {
        let page = page(&instance).await;
        match expected.iter().find(|line| !page.lines().any(|other| other == **line)) {
            None => Ok(true),
            Some(line) => Err(format!("no line {line:?} in\n{page}")),
        }
    })
    .await?;
    Ok(())
}
