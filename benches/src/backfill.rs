use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cutover::ledger::Ledger;
use cutover::migration::Phase;
use cutover::migration::{BatchOptions, ColumnMigration};
use cutover::migration::{Migration, Plan, Task};
use cutover_testkit::Postgres;
use sqlx::{AssertSqlSafe, Executor, PgPool};

use super::table::Table;
use super::timing::quantile;
use super::world::{self, Instance, LIMIT};

/// The copied value. The writes of a service have others.
const FORWARD: &str = "lower(trim(old_status))";

/// How the new column is filled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    /// One statement updates all rows.
    Giant,
    /// By this library.
    Cutover,
    /// A row trigger computes the value, and batches of 1,000 rows touch every row, as pgroll does it.
    Pgroll,
    /// A statement for each 1,000 keys, each its own transaction.
    Loop,
}

pub(crate) const VARIANTS: [(Variant, &str); 4] = [
    (Variant::Giant, "one update"),
    (Variant::Cutover, "cutover"),
    (Variant::Pgroll, "trigger and batches of 1,000"),
    (Variant::Loop, "loop over 1,000 keys"),
];

/// A database with the table, and an instance that works on it.
pub(crate) struct Bench {
    pub(crate) admin: PgPool,
    pub(crate) service: PgPool,
    pub(crate) migration: Migration,
    instance: Instance,
    _server: Postgres,
}

pub(crate) async fn run(quick: bool, most: i64) -> Result<()> {
    let bench = Bench::start().await?;
    bench.go(Phase::Backfill).await?;
    // Rows and rounds. Only the first two variants fill the largest table: the others take several minutes.
    let sizes: &[(i64, usize)] =
        if quick { &[(20_000, 1)] } else { &[(300_000, 2), (1_000_000, 1), (most, 1)] };
    let mut table = Table::new("Filling a column", &["rows/s", "vs. one update", "worst round"]);
    for (rows, rounds) in sizes {
        let variants = if *rows > 1_000_000 { &VARIANTS[..2] } else { &VARIANTS[..] };
        bench.speed(*rows, *rounds, variants, &mut table).await?;
    }
    table.publish("backfill")?;
    super::foreground::copy(&bench, quick).await?;
    // The last variant may not have been ours, and the ledger has to know of a complete backfill.
    bench.fresh(if quick { 20_000 } else { 1_000_000 }).await?;
    bench.fill(Variant::Cutover, None).await?;
    bench.go(Phase::Verify).await?;
    bench.verification(if quick { 1 } else { 3 }).await?;
    super::foreground::scan(&bench, quick).await
}

impl Bench {
    async fn start() -> Result<Self> {
        let settings = [("autovacuum", "off"), ("max_wal_size", "16GB"), ("shared_buffers", "512MB")];
        let server = world::server(&settings).await?;
        let url = server.create_database("bench").await?;
        let instance = Instance::start(Ledger::open(url.parse()?).await?, "alone".into()).await?;
        instance.at(Phase::Off).await?;
        let (admin, service) = (PgPool::connect(&url).await?, PgPool::connect(&url).await?);
        Ok(Self { admin, service, migration: instance.migration.clone(), instance, _server: server })
    }

    async fn go(&self, phase: Phase) -> Result<()> {
        let statement = "update cutover.migrations set desired = $1";
        sqlx::query(statement).bind(phase.name()).execute(&self.admin).await?;
        self.instance.at(phase).await?;
        let settled = "select not exists (select 1 from cutover.epochs e join cutover.migrations m \
            on m.id = e.migration_id where e.epoch < m.epoch and e.drained_at is null)";
        let drained = async || sqlx::query_scalar(settled).fetch_one(&self.admin).await;
        Ok(cutover_testkit::wait_until("the old epoch to be drained", LIMIT, drained).await?)
    }

    pub(crate) fn plan(&self) -> Result<ColumnMigration> {
        Ok(ColumnMigration::new(self.service.clone(), "orders")
            .column("old_status", "new_status", "text")
            .forward(FORWARD)
            .backward("' ' || upper(new_status) || ' '")
            .batches(BatchOptions { ranges: 1, ..BatchOptions::default() })
            .build()?)
    }

    /// A new table with an empty new column.
    pub(crate) async fn fresh(&self, rows: i64) -> Result<()> {
        self.admin
            .execute(AssertSqlSafe(format!(
                "drop table if exists orders; \
                 create table orders (id bigint primary key, note text, old_status text, new_status text); \
                 insert into orders select g, repeat('n', 40), ' LEGACY' || g || ' ' \
                     from generate_series(1, {rows}) g; \
                 update cutover.migrations set new_complete = false; \
                 delete from cutover.jobs where finished_at is null"
            )))
            .await?;
        self.admin.execute("vacuum analyze orders").await?;
        self.admin.execute("checkpoint").await?;
        Ok(())
    }

    /// Fills the new column until the end or until `limit`, and returns the seconds that it took. One update always runs
    /// to its end, because a part of it has no effect.
    pub(crate) async fn fill(&self, variant: Variant, limit: Option<Duration>) -> Result<f64> {
        let began = Instant::now();
        let limit = limit.unwrap_or(Duration::MAX);
        let goes_on = || began.elapsed() < limit;
        match variant {
            Variant::Giant => {
                let statement = format!("update orders set new_status = {FORWARD}");
                self.admin.execute(AssertSqlSafe(statement)).await?;
            }
            Variant::Cutover => {
                let plan = self.plan()?;
                if let Ok(done) = tokio::time::timeout(limit, plan.run(Task::Backfill, &self.migration)).await
                {
                    done?;
                }
            }
            Variant::Pgroll => self.fill_by_trigger(goes_on).await?,
            Variant::Loop => self.fill_in_a_loop(goes_on).await?,
        }
        Ok(began.elapsed().as_secs_f64())
    }

    async fn fill_by_trigger(&self, goes_on: impl Fn() -> bool) -> Result<()> {
        self.admin
            .execute(
                "create or replace function fill() returns trigger language plpgsql as $$ begin \
                     new.new_status = lower(trim(new.old_status)); return new; end $$; \
                 create trigger fill before insert or update on orders for each row execute function fill()",
            )
            .await?;
        let mut last = Some(0_i64);
        while let Some(from) = last.filter(|_| goes_on()) {
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

    async fn fill_in_a_loop(&self, goes_on: impl Fn() -> bool) -> Result<()> {
        let statement = format!("update orders set new_status = {FORWARD} where id > $1 and id <= $1 + 1000");
        let last: i64 = sqlx::query_scalar("select max(id) from orders").fetch_one(&self.admin).await?;
        let mut from = 0_i64;
        while from < last && goes_on() {
            sqlx::query(AssertSqlSafe(statement.clone())).bind(from).execute(&self.admin).await?;
            from += 1_000;
        }
        Ok(())
    }

    async fn speed(
        &self,
        rows: i64,
        rounds: usize,
        variants: &[(Variant, &str)],
        table: &mut Table,
    ) -> Result<()> {
        let mut seconds: [Vec<f64>; VARIANTS.len()] = Default::default();
        for _ in 0..rounds {
            let mut order: Vec<usize> = (0..variants.len()).collect();
            fastrand::shuffle(&mut order);
            for index in order {
                self.fresh(rows).await?;
                seconds[index].push(self.fill(variants[index].0, None).await?);
            }
        }
        let giant = seconds[0].clone();
        for ((_, name), seconds) in variants.iter().zip(&mut seconds) {
            let mut ratios: Vec<f64> = giant.iter().zip(&*seconds).map(|(giant, own)| giant / own).collect();
            let rate = rows as f64 / quantile(seconds, 0.5);
            let name = format!("{rows} rows, {name}");
            table.row(name, vec![rate, quantile(&mut ratios, 0.5), quantile(&mut ratios, 0.0)]);
        }
        Ok(())
    }

    async fn verification(&self, rounds: usize) -> Result<()> {
        let rows: i64 = sqlx::query_scalar("select count(*) from orders").fetch_one(&self.admin).await?;
        let queries = [
            ("one query, one way", format!("new_status is distinct from {FORWARD}")),
            (
                "one query, there and back",
                format!(
                    "new_status is distinct from {FORWARD} \
                     or new_status is distinct from lower(trim(' ' || upper(new_status) || ' '))"
                ),
            ),
        ];
        let mut times: [Vec<f64>; 3] = Default::default();
        for _ in 0..rounds {
            for ((_, condition), times) in queries.iter().zip(&mut times) {
                let began = Instant::now();
                let query = AssertSqlSafe(format!("select count(*) from orders where {condition}"));
                let differing: i64 = sqlx::query_scalar(query).fetch_one(&self.admin).await?;
                times.push(began.elapsed().as_secs_f64());
                (differing == 0).then_some(()).context("the sides differ")?;
            }
            let began = Instant::now();
            self.plan()?.run(Task::Scan, &self.migration).await?;
            times[2].push(began.elapsed().as_secs_f64());
        }
        let mut table = Table::new("Comparing both sides of a column", &["rows/s"]);
        let names = queries.iter().map(|(name, _)| *name).chain(["cutover, there and back"]);
        for (name, times) in names.zip(&mut times) {
            table.row(name, vec![rows as f64 / quantile(times, 0.5)]);
        }
        table.publish("backfill-verification")
    }
}
