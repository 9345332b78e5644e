//! Passes that pause while other work would suffer.

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cutover::ledger::Ledger;
use cutover::migration::admin::report;
use cutover::migration::{BatchOptions, ColumnMigration, Error, Throttle};
use cutover_testkit::{Postgres, PostgresOptions, Proxy, wait_until};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::world::{Outcome, World};

/// Waits until `cutover status` shows this reason.
async fn held(world: &World) -> Option<String> {
    let ledger = Ledger::existing(world.url.parse().ok()?).await.ok()?;
    report(&ledger, Some("status")).await.ok()?.pop()?.work?.throttled_by
}

async fn is_held(world: &World, part: &str) -> Outcome {
    let ask = async || held(world).await.is_some_and(|why| why.contains(part));
    Ok(world.until(&format!("work throttled by {part:?}"), ask).await?)
}

async fn copied(world: &World) -> Outcome<i64> {
    Ok(sqlx::query_scalar("select count(*) from orders where new_status is not null")
        .fetch_one(&world.pool)
        .await?)
}

#[tokio::test]
async fn a_custom_signal_throttles_and_is_shown() -> Outcome {
    let world = World::new(1_000).await?;
    let busy = Arc::new(AtomicBool::new(true));
    let signal = Arc::clone(&busy);
    let throttle = Throttle::off()
        .hold_while(move || signal.load(Ordering::Relaxed).then(|| "the queue is long".to_owned()));
    let a = world.instance("a", Some(world.describe().throttle(throttle).build()?)).await?;
    let registry = prometheus::Registry::new();
    a.agent.register(&registry)?;
    world.ask("backfill").await?;
    is_held(&world, "the queue is long").await?;
    assert_eq!(copied(&world).await?, 0);
    let counted = || prometheus::TextEncoder::new().encode_to_string(&registry.gather());
    let line =
        "cutover_migration_throttled_seconds_total{kind=\"backfill\",migration=\"status\",reason=\"signal\"}";
    world.until("a second of it counted", async || counted().is_ok_and(|text| text.contains(line))).await?;
    busy.store(false, Ordering::Relaxed);
    world.filled().await?;
    assert_eq!((copied(&world).await?, held(&world).await), (1_000, None));
    Ok(())
}

#[tokio::test]
async fn a_throttled_pass_ends_with_its_phase() -> Outcome {
    let world = World::new(100).await?;
    let throttle = Throttle::off().hold_while(|| Some("for ever".to_owned()));
    let _a = world.instance("a", Some(world.describe().throttle(throttle).build()?)).await?;
    world.ask("backfill").await?;
    is_held(&world, "for ever").await?;
    world.go("off").await?;
    assert_eq!(copied(&world).await?, 0);
    Ok(())
}

#[tokio::test]
async fn lock_waits_throttle_a_pass() -> Outcome {
    let world = World::new(1_000).await?;
    world.pool.execute("create table hot (n int); insert into hot values (1)").await?;
    let throttle = Throttle::off().lock_waits(Some(1));
    let _a = world.instance("a", Some(world.describe().throttle(throttle).build()?)).await?;
    let mut holder = PgConnection::connect(&world.url).await?;
    holder.execute("begin; update hot set n = 2").await?;
    let mut waiting = Vec::new();
    for _ in 0..3 {
        let mut session = PgConnection::connect(&world.url).await?;
        waiting.push(tokio::spawn(async move { session.execute("update hot set n = 3").await }));
    }
    let waiters = "select count(*) = 3 from pg_stat_activity where datname = current_database() \
        and wait_event_type = 'Lock'";
    let ask = async || sqlx::query_scalar(waiters).fetch_one(&world.pool).await.unwrap_or(false);
    world.until("three that wait", ask).await?;
    world.ask("backfill").await?;
    is_held(&world, "3 sessions wait for locks").await?;
    assert_eq!(copied(&world).await?, 0);
    holder.execute("rollback").await?;
    world.filled().await?;
    for session in waiting {
        session.await??;
    }
    Ok(())
}

#[tokio::test]
async fn standby_lag_throttles_a_pass() -> Outcome {
    let primary = Postgres::start(PostgresOptions::default()).await?;
    let world = World::at(primary.create_database("shop").await?, 1_000).await?;
    let standby = primary.standby().await?;
    let throttle = Throttle::off().standby_lag(Some(1 << 20));
    let _a = world.instance("a", Some(world.describe().throttle(throttle).build()?)).await?;
    world.go("expand").await?;
    let mut reader = PgConnection::connect(&standby.admin_url()).await?;
    reader.execute("select pg_wal_replay_pause()").await?;
    let noise = "create table noise as select repeat('x', 1000) from generate_series(1, 4000)";
    world.pool.execute(AssertSqlSafe(noise)).await?;
    world.ask("backfill").await?;
    is_held(&world, "MB to replay").await?;
    assert_eq!(copied(&world).await?, 0);
    reader.execute("select pg_wal_replay_resume()").await?;
    world.filled().await?;
    assert_eq!(copied(&world).await?, 1_000);
    Ok(())
}

/// Takes 50 times as long while a batch is under way, so that a busy machine makes no difference.
const WRITE: &str = "select pg_sleep(case when exists (select from pg_stat_activity \
    where application_name = 'rows' and xact_start is not null) then 0.25 else 0.005 end)";

const ROWS: i64 = 60_000;

/// The share of the time in which work on rows runs, in percent, if writes of the service hold it back.
async fn share(world: &World) -> Option<u32> {
    let why = held(world).await?;
    why.strip_prefix("the service's writes: ")?;
    why.split_once("it works ")?.1.split_once(" %")?.0.parse().ok()
}

#[tokio::test]
async fn slower_writes_of_the_service_hold_passes_back() -> Outcome {
    let world = World::new(ROWS).await?;
    // Batches take at least 40 ms on any machine.
    let proxy = Proxy::start(Postgres::shared().await?.port())?;
    proxy.slow(Duration::from_millis(5));
    let rows = PgConnectOptions::from_str(&world.url)?.port(proxy.port()).application_name("rows");
    let plan =
        ColumnMigration::new(PgPoolOptions::new().max_connections(3).connect_lazy_with(rows), "orders")
            .key("id")
            .column("old_status", "new_status", "text")
            .forward("lower(trim(old_status))")
            .backward("format(' %s ', upper(new_status))")
            .batches(BatchOptions { min_rows: 200, max_rows: 200, ..BatchOptions::default() })
            .build()?;
    let a = world.instance("a", Some(plan)).await?;
    let written = Arc::new(AtomicU64::new(0));
    for (phase, kind) in [("backfill", "backfill"), ("verify", "scan")] {
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..6)
            .map(|_| {
                let (pool, migration) = (world.pool.clone(), a.migration.clone());
                let (stop, written) = (Arc::clone(&stop), Arc::clone(&written));
                tokio::spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        let mut tx = migration.begin(&pool).await?;
                        tx.execute(WRITE).await?;
                        tx.commit().await?;
                        written.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok::<_, Error>(())
                })
            })
            .collect();
        // Fewer are no foreground, and the writers stop between the two passes.
        let before = written.load(Ordering::Relaxed);
        world.until("writes", async || written.load(Ordering::Relaxed) > before + 100).await?;
        world.ask(phase).await?;
        // With one batch in twenty moments, more than one write in a hundred is slow.
        let is_low = async || share(&world).await.is_some_and(|share| share <= 5);
        // On a busy machine, the first measurement of the quiet value may be of no use. It is repeated after half a minute.
        let ask = async || Ok::<_, Error>(is_low().await);
        wait_until(&format!("a {kind} that works 5 % of the time"), Duration::from_secs(180), ask).await?;
        let done = "select rows_done from cutover.jobs where kind = $1";
        let done: i64 = sqlx::query_scalar(done).bind(kind).fetch_one(&world.pool).await?;
        assert!(done < ROWS, "the {kind} ended first");
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.await??;
        }
        // Without the service's writes the rest takes seconds.
        let ended = "select finished_at is not null from cutover.jobs where kind = $1";
        let ask = async || sqlx::query_scalar(ended).bind(kind).fetch_one(&world.pool).await.unwrap_or(false);
        world.until(&format!("the end of the {kind}"), ask).await?;
    }
    Ok(())
}

/// Its own batches are no writes of the service: they would limit it to 1/256 of the rows, and make it rest.
#[tokio::test]
async fn a_copy_alone_is_not_held_back_by_its_own_batches() -> Outcome {
    let world = World::new(100_000).await?;
    // On any machine, batches grow up to 20,000 rows.
    let batches = BatchOptions { target: Duration::from_secs(30), ..BatchOptions::default() };
    let _a = world.instance("a", Some(world.describe().batches(batches).build()?)).await?;
    world.go("backfill").await?;
    world.filled().await?;
    // Each batch is a transaction. With 500 rows each there are 200.
    let transactions = "select count(distinct xmin::text) from orders";
    let transactions: i64 = sqlx::query_scalar(transactions).fetch_one(&world.pool).await?;
    assert!(transactions < 60, "{transactions}");
    Ok(())
}
