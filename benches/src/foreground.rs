//! A service that writes at a fixed rate while a copy or a scan runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use cutover::migration::{Migration, Plan, Task};
use sqlx::PgPool;
use tokio::task::JoinHandle;

use super::backfill::{Bench, VARIANTS, Variant};
use super::table::Table;
use super::timing::quantile;

/// How many writes are under way at most.
const WRITERS: u32 = 8;
/// Parts of the rate at which the machine can do no more.
const LOADS: [(&str, f64); 2] = [("30 % load", 0.3), ("70 % load", 0.7)];

/// How long each variant is measured.
struct Times {
    rows: i64,
    /// To find the highest rate.
    highest: Duration,
    /// Without any work on rows.
    idle: Duration,
    /// While the library works. Longer than the others, because it adapts.
    own: Duration,
    other: Duration,
}

impl Times {
    fn new(quick: bool) -> Self {
        let seconds = Duration::from_secs;
        if quick {
            let (highest, idle, own, other) = (seconds(1), seconds(2), seconds(4), seconds(2));
            Self { rows: 20_000, highest, idle, own, other }
        } else {
            let (highest, idle, own, other) = (seconds(4), seconds(8), seconds(24), seconds(6));
            Self { rows: 1_000_000, highest, idle, own, other }
        }
    }
}

/// Writes during the fill of a column.
pub(crate) async fn copy(bench: &Bench, quick: bool) -> Result<()> {
    let times = Times::new(quick);
    bench.fresh(times.rows).await?;
    let highest = highest_rate(bench, &times).await?;
    let mut table = writes_table("A write of one row during the fill of a column");
    for (load, share) in LOADS {
        bench.fresh(times.rows).await?;
        let idle = Service::start(bench, times.rows, highest * share);
        tokio::time::sleep(times.idle).await;
        let idle = idle.end().await?;
        let quiet = row(&mut table, &format!("{load}, nothing"), idle, None, f64::NAN);
        for (variant, name) in VARIANTS {
            bench.fresh(times.rows).await?;
            let service = Service::start(bench, times.rows, highest * share);
            let limit = if variant == Variant::Cutover { times.own } else { times.other };
            let seconds = bench.fill(variant, Some(limit)).await?;
            let written = service.end().await?;
            // The writes of the service have another value.
            let copied = "select count(*) from orders where new_status like 'legacy%'";
            let copied: i64 = sqlx::query_scalar(copied).fetch_one(&bench.admin).await?;
            row(&mut table, &format!("{load}, {name}"), written, Some(quiet), copied as f64 / seconds);
        }
    }
    table.publish("backfill-foreground")
}

/// Writes during a scan.
pub(crate) async fn scan(bench: &Bench, quick: bool) -> Result<()> {
    let times = Times::new(quick);
    let highest = highest_rate(bench, &times).await?;
    let mut table = writes_table("A write of one row during a scan");
    for (load, share) in LOADS {
        let idle = Service::start(bench, times.rows, highest * share);
        tokio::time::sleep(times.idle).await;
        let idle = idle.end().await?;
        let quiet = row(&mut table, &format!("{load}, nothing"), idle, None, f64::NAN);
        let done = "select coalesce(sum(rows_done), 0)::bigint from cutover.jobs where kind = 'scan'";
        let before: i64 = sqlx::query_scalar(done).fetch_one(&bench.admin).await?;
        let service = Service::start(bench, times.rows, highest * share);
        let began = Instant::now();
        // Scans follow each other, so that the time is long enough.
        while let Some(left) = times.own.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) {
            let plan = bench.plan()?;
            if let Ok(done) = tokio::time::timeout(left, plan.run(Task::Scan, &bench.migration)).await {
                done?;
            }
        }
        let seconds = began.elapsed().as_secs_f64();
        let written = service.end().await?;
        let after: i64 = sqlx::query_scalar(done).fetch_one(&bench.admin).await?;
        let rate = (after - before) as f64 / seconds;
        row(&mut table, &format!("{load}, cutover"), written, Some(quiet), rate);
    }
    table.publish("scan-foreground")
}

fn writes_table(title: &'static str) -> Table {
    Table::new(title, &["p50 ms", "p99 ms", "worst ms", "p99 ratio", "writes/s", "rows/s"])
}

/// Adds what was measured, and returns the 99th percentile.
fn row(table: &mut Table, name: &str, mut written: Written, quiet: Option<f64>, rate: f64) -> f64 {
    let times = &mut written.millis;
    let (p50, p99, worst) = (quantile(times, 0.5), quantile(times, 0.99), quantile(times, 1.0));
    let per_second = times.len() as f64 / written.seconds;
    table.row(name, vec![p50, p99, worst, quiet.map_or(1.0, |quiet| p99 / quiet), per_second, rate]);
    p99
}

/// How many writes per second the machine can do, without any work on rows.
async fn highest_rate(bench: &Bench, times: &Times) -> Result<f64> {
    let service = Service::start(bench, times.rows, f64::INFINITY);
    tokio::time::sleep(times.highest).await;
    let written = service.end().await?;
    Ok(written.millis.len() as f64 / written.seconds)
}

/// Writers that each begin a write at fixed times, whether or not the last one was answered in time.
struct Service {
    stop: Arc<AtomicBool>,
    began: Instant,
    writers: Vec<JoinHandle<Result<Vec<f64>>>>,
}

/// How long each write took from when it was due.
struct Written {
    millis: Vec<f64>,
    seconds: f64,
}

impl Service {
    fn start(bench: &Bench, rows: i64, per_second: f64) -> Self {
        let (stop, began) = (Arc::new(AtomicBool::new(false)), Instant::now());
        let every = Duration::from_secs_f64(f64::from(WRITERS) / per_second);
        let writer = |number| {
            let (pool, migration, stop) = (bench.service.clone(), bench.migration.clone(), stop.clone());
            let first = began + every * number / WRITERS;
            tokio::spawn(write(pool, migration, rows, first, every, stop))
        };
        Self { writers: (0..WRITERS).map(writer).collect(), stop, began }
    }

    async fn end(self) -> Result<Written> {
        self.stop.store(true, Ordering::Relaxed);
        let mut millis = Vec::new();
        for writer in self.writers {
            millis.extend(writer.await??);
        }
        Ok(Written { millis, seconds: self.began.elapsed().as_secs_f64() })
    }
}

async fn write(
    pool: PgPool,
    migration: Migration,
    rows: i64,
    mut due: Instant,
    every: Duration,
    stop: Arc<AtomicBool>,
) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        if every.is_zero() {
            due = Instant::now();
        }
        tokio::time::sleep_until(due.into()).await;
        let mut tx = migration.begin(&pool).await?;
        sqlx::query("update orders set old_status = ' NEWER ', new_status = 'newer' where id = $1")
            .bind(fastrand::i64(1..=rows))
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        times.push(due.elapsed().as_secs_f64() * 1_000.0);
        due += every;
    }
    Ok(times)
}
