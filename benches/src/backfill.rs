use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cutover::ledger::Ledger;
use cutover::migration::Phase;
use cutover::migration::{BatchOptions, ColumnMigration};
use cutover::migration::{Migration, Plan, Task};
use sqlx::{AssertSqlSafe, Executor, PgPool};

use super::table::Table;
use super::timing::quantile;
use super::world::{self, Instance, LIMIT};

/// Time between two writes of the service, whether or not the last one was answered.
const EVERY: Duration = Duration::from_millis(4);

/// How the new column is filled.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Variant {
    /// Not at all, for the time that cutover took.
    Idle,
    /// One statement updates all rows.
    Giant,
    /// By this library.
    Cutover,
    /// A row trigger computes the value, and batches of 1,000 rows touch every row, as pgroll does it.
    Pgroll,
}

const VARIANTS: [(Variant, &str); 4] = [
    (Variant::Idle, "nothing"),
    (Variant::Giant, "one update"),
    (Variant::Cutover, "cutover"),
    (Variant::Pgroll, "trigger and batches of 1,000"),
];

struct Bench {
    admin: PgPool,
    service: PgPool,
    migration: Migration,
    rows: i64,
}

pub(crate) async fn run(quick: bool, rows: i64) -> Result<()> {
    let settings = [("autovacuum", "off"), ("max_wal_size", "16GB"), ("shared_buffers", "512MB")];
    let postgres = world::server(&settings).await?;
    let url = postgres.create_database("bench").await?;
    let instance = Instance::start(Ledger::open(url.parse()?).await?, "alone".into()).await?;
    instance.at(Phase::Off).await?;
    let admin = PgPool::connect(&url).await?;
    admin
        .execute(AssertSqlSafe(format!(
            "create table base (id bigint primary key, note text, old_status text); \
             insert into base select g, repeat('n', 40), ' LEGACY' || g || ' ' from generate_series(1, {rows}) g"
        )))
        .await?;
    let bench =
        Bench { service: PgPool::connect(&url).await?, admin, migration: instance.migration.clone(), rows };
    bench.go(&instance, Phase::Backfill).await?;
    let rounds = if quick { 1 } else { 5 };
    bench.speed(rounds).await?;
    bench.foreground(rounds).await?;
    // The last variant may not have been ours, and the ledger has to know of a complete backfill.
    bench.fresh().await?;
    bench.fill(Variant::Cutover, Duration::ZERO).await?;
    bench.go(&instance, Phase::Verify).await?;
    bench.verification(rounds).await
}

impl Bench {
    async fn go(&self, instance: &Instance, phase: Phase) -> Result<()> {
        let statement = "update cutover.migrations set desired = $1";
        sqlx::query(statement).bind(phase.name()).execute(&self.admin).await?;
        instance.at(phase).await?;
        let settled = "select not exists (select 1 from cutover.epochs e join cutover.migrations m \
            on m.id = e.migration_id where e.epoch < m.epoch and e.drained_at is null)";
        let drained = async || sqlx::query_scalar(settled).fetch_one(&self.admin).await;
        Ok(cutover_testkit::wait_until("the old epoch to be drained", LIMIT, drained).await?)
    }

    fn plan(&self) -> Result<ColumnMigration> {
        Ok(ColumnMigration::new(self.service.clone(), "orders")
            .column("old_status", "new_status", "text")
            .forward("lower(trim(old_status))")
            .backward("' ' || upper(new_status) || ' '")
            .batches(BatchOptions { ranges: 1, ..BatchOptions::default() })
            .build()?)
    }

    /// A new table with an empty new column.
    async fn fresh(&self) -> Result<()> {
        self.admin
            .execute(
                "drop table if exists orders; \
                 create table orders (id bigint primary key, note text, old_status text, new_status text); \
                 insert into orders select id, note, old_status from base; \
                 update cutover.migrations set new_complete = false",
            )
            .await?;
        self.admin.execute("vacuum analyze orders").await?;
        self.admin.execute("checkpoint").await?;
        Ok(())
    }

    /// Fills the new column and returns the seconds that it took.
    async fn fill(&self, variant: Variant, idle: Duration) -> Result<f64> {
        let began = Instant::now();
        match variant {
            Variant::Idle => tokio::time::sleep(idle).await,
            Variant::Giant => {
                self.admin.execute("update orders set new_status = lower(trim(old_status))").await?;
            }
            Variant::Cutover => self.plan()?.run(Task::Backfill, &self.migration).await?,
            Variant::Pgroll => self.fill_by_trigger().await?,
        }
        Ok(began.elapsed().as_secs_f64())
    }

    async fn fill_by_trigger(&self) -> Result<()> {
        self.admin
            .execute(
                "create or replace function fill() returns trigger language plpgsql as $$ begin \
                     new.new_status = lower(trim(new.old_status)); return new; end $$; \
                 create trigger fill before insert or update on orders for each row execute function fill()",
            )
            .await?;
        let mut last = Some(0_i64);
        while let Some(from) = last {
            last = sqlx::query_scalar(
                "with batch as (select id from orders where id > $1 order by id limit 1000 for no key update), \
                      done as (update orders set id = orders.id from batch where orders.id = batch.id returning orders.id) \
                 select max(id) from done",
            )
            .bind(from)
            .fetch_one(&self.admin)
            .await?;
        }
        Ok(())
    }

    async fn speed(&self, rounds: usize) -> Result<()> {
        let mut seconds: [Vec<f64>; 4] = Default::default();
        for _ in 0..rounds {
            let mut order = [1, 2, 3];
            fastrand::shuffle(&mut order);
            for index in order {
                self.fresh().await?;
                seconds[index].push(self.fill(VARIANTS[index].0, Duration::ZERO).await?);
            }
        }
        let mut table = Table::new("Filling a column", &["rows/s", "vs. one update", "worst round"]);
        let giant = seconds[1].clone();
        for (index, (_, name)) in VARIANTS.iter().enumerate().skip(1) {
            let mut ratios: Vec<f64> =
                giant.iter().zip(&seconds[index]).map(|(giant, own)| giant / own).collect();
            let rate = self.rows as f64 / quantile(&mut seconds[index], 0.5);
            table.row(*name, vec![rate, quantile(&mut ratios, 0.5), quantile(&mut ratios, 0.0)]);
        }
        table.publish("backfill")
    }

    /// How long a service's writes of single rows take meanwhile.
    async fn foreground(&self, rounds: usize) -> Result<()> {
        let mut times: [Vec<f64>; 4] = Default::default();
        for _ in 0..rounds {
            self.fresh().await?;
            let idle = Duration::from_secs_f64(self.fill(Variant::Cutover, Duration::ZERO).await?);
            let mut order = [0, 1, 2, 3];
            fastrand::shuffle(&mut order);
            for index in order {
                self.fresh().await?;
                let stop = Arc::new(AtomicBool::new(false));
                let writers: Vec<_> = (0..2)
                    .map(|_| {
                        let (pool, migration) = (self.service.clone(), self.migration.clone());
                        tokio::spawn(write(pool, migration, self.rows, stop.clone()))
                    })
                    .collect();
                self.fill(VARIANTS[index].0, idle).await?;
                stop.store(true, Ordering::Relaxed);
                for writer in writers {
                    times[index].extend(writer.await??);
                }
            }
        }
        let mut table = Table::new(
            "A write of one row during the backfill, timed from when it was due (ms; ratio to no backfill)",
            &["p50", "p99", "worst", "p99 ratio", "writes"],
        );
        let idle = quantile(&mut times[0], 0.99);
        for ((_, name), times) in VARIANTS.iter().zip(&mut times) {
            let p99 = quantile(times, 0.99);
            let writes = times.len() as f64;
            table.row(*name, vec![quantile(times, 0.5), p99, quantile(times, 1.0), p99 / idle, writes]);
        }
        table.publish("backfill-foreground")
    }

    async fn verification(&self, rounds: usize) -> Result<()> {
        let mut times: [Vec<f64>; 2] = Default::default();
        for _ in 0..rounds {
            let began = Instant::now();
            let differing: i64 = sqlx::query_scalar(
                "select count(*) from orders where new_status is distinct from lower(trim(old_status))",
            )
            .fetch_one(&self.admin)
            .await?;
            times[0].push(began.elapsed().as_secs_f64());
            let began = Instant::now();
            self.plan()?.run(Task::Scan, &self.migration).await?;
            times[1].push(began.elapsed().as_secs_f64());
            (differing == 0).then_some(()).context("the sides differ")?;
        }
        let mut table = Table::new("Comparing both sides of a column", &["rows/s"]);
        for (name, times) in ["one query, one way", "cutover, there and back"].iter().zip(&mut times) {
            table.row(*name, vec![self.rows as f64 / quantile(times, 0.5)]);
        }
        table.publish("backfill-verification")
    }
}

/// Writes at fixed times, whether or not the last write was answered.
async fn write(pool: PgPool, migration: Migration, rows: i64, stop: Arc<AtomicBool>) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    let mut due = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        due += EVERY;
        tokio::time::sleep_until(due.into()).await;
        let mut tx = migration.begin(&pool).await?;
        sqlx::query("update orders set old_status = ' NEWER ', new_status = 'newer' where id = $1")
            .bind(fastrand::i64(1..=rows))
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        times.push(due.elapsed().as_secs_f64() * 1_000.0);
    }
    Ok(times)
}
