use std::time::{Duration, Instant};

use anyhow::Result;
use cutover::migration::DualWrite;
use cutover::migration::{Error, Migration, PinnedTx};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Executor, PgPool};

use super::table::Table;
use super::timing::quantile;
use super::world;

const ROWS: i64 = 100_000;

#[cutover::dual_write(at_once = StatusesAtOnce)]
trait Statuses {
    #[write(key = id)]
    async fn set(&self, tx: &mut PinnedTx, id: i64, status: &str) -> Result<(), Error>;
}

/// A statement with parameters for id and status.
struct Statement(&'static str);

impl Statement {
    async fn run(&self, tx: &mut PinnedTx, id: i64, status: &str) -> Result<(), Error> {
        sqlx::query(self.0).bind(id).bind(status).execute(&mut **tx).await?;
        Ok(())
    }
}

impl Statuses for Statement {
    async fn set(&self, tx: &mut PinnedTx, id: i64, status: &str) -> Result<(), Error> {
        self.run(tx, id, status).await
    }
}

impl StatusesAtOnce for Statement {
    async fn set(&self, tx: &mut PinnedTx, id: i64, status: &str) -> Result<(), Error> {
        self.run(tx, id, status).await
    }
}

const OLD: Statement = Statement("update orders set old_status = $2 where id = $1");
const NEW: Statement = Statement("update orders set new_status = $2 where id = $1");
const BOTH: Statement = Statement("update orders set old_status = $2, new_status = $2 where id = $1");

const VARIANTS: [&str; 4] = [
    "one column alone",
    "both, in one statement",
    "both, one after the other",
    "both, one after the other, repaired later",
];

struct Client {
    pool: PgPool,
    migration: Migration,
    apart: DualWrite<Statement, Statement>,
    repairing: DualWrite<Statement, Statement>,
    at_once: DualWrite<Statement, Statement, Statement>,
}

impl Client {
    /// Runs a transaction that changes one row, and returns how long it took.
    async fn transaction(&self, variant: usize) -> Result<f64> {
        let (id, status) = (fastrand::i64(1..=ROWS), "paid");
        let began = Instant::now();
        let mut tx = self.migration.begin(&self.pool).await?;
        match variant {
            0 => OLD.run(&mut tx, id, status).await?,
            1 => self.at_once.set(&mut tx, id, status).await?,
            2 => self.apart.set(&mut tx, id, status).await?,
            _ => self.repairing.set(&mut tx, id, status).await?,
        }
        tx.commit().await?;
        Ok(began.elapsed().as_secs_f64() * 1e6)
    }
}

pub(crate) async fn run(quick: bool) -> Result<()> {
    let (_postgres, url, instance) = world::alone().await?;
    let pool = PgPoolOptions::new().max_connections(2).test_before_acquire(false).connect(&url).await?;
    pool.execute(
        "create table orders (id bigint primary key, old_status text, new_status text) with (fillfactor = 70); \
         insert into orders select g, 'pending', 'pending' from generate_series(1, 100000) g",
    )
    .await?;
    pool.execute("vacuum analyze orders").await?;
    instance.go(&pool, "expand").await?;
    let migration = instance.migration.clone();
    let client = Client {
        apart: DualWrite::new(migration.clone(), OLD, NEW),
        repairing: DualWrite::new(migration.clone(), OLD, NEW).repair_later(),
        at_once: DualWrite::new(migration.clone(), OLD, NEW).at_once(BOTH),
        migration,
        pool,
    };
    let mut times: [Vec<f64>; 4] = Default::default();
    for variant in 0..VARIANTS.len() {
        // Prepares the statements.
        client.transaction(variant).await?;
    }
    let end = Instant::now() + Duration::from_secs(if quick { 2 } else { 10 });
    while Instant::now() < end {
        let mut order = [0, 1, 2, 3];
        fastrand::shuffle(&mut order);
        for variant in order {
            times[variant].push(client.transaction(variant).await?);
        }
    }
    let mut table = Table::new(
        "A fenced transaction that writes both columns of a row (µs; ratios to one column)",
        &["p50", "p99", "p50 ratio", "p99 ratio"],
    );
    let mut alone = (f64::NAN, f64::NAN);
    for (name, times) in VARIANTS.into_iter().zip(&mut times) {
        let (p50, p99) = (quantile(times, 0.5), quantile(times, 0.99));
        if alone.0.is_nan() {
            alone = (p50, p99);
        }
        table.row(name, vec![p50, p99, p50 / alone.0, p99 / alone.1]);
    }
    table.publish("columns")
}
