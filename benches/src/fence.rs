use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cutover::ledger::Ledger;
use cutover::migration::Migration;
use cutover::migration::Phase;
use deadpool_postgres::{Manager, Pool};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Executor, PgPool};
use tokio_postgres::NoTls;

use super::proxy;
use super::table::Table;
use super::timing::quantile;
use super::world::{self, Instance};

const ROWS: i64 = 100_000;
const UPDATE: &str = "update accounts set balance = balance + 1 where id = $1";
/// A round trip of 0.5 ms: another machine in the same data centre.
const ONE_WAY: Duration = Duration::from_micros(250);

/// How a transaction begins.
#[derive(Clone, Copy)]
enum Variant {
    Sqlx { fenced: bool },
    Deadpool { fenced: bool },
}

const VARIANTS: [Variant; 4] = [
    Variant::Sqlx { fenced: false },
    Variant::Sqlx { fenced: true },
    Variant::Deadpool { fenced: false },
    Variant::Deadpool { fenced: true },
];

impl Variant {
    fn name(self) -> &'static str {
        match self {
            Variant::Sqlx { fenced: false } => "sqlx, no fence",
            Variant::Sqlx { fenced: true } => "sqlx, fenced",
            Variant::Deadpool { fenced: false } => "deadpool, no fence",
            Variant::Deadpool { fenced: true } => "deadpool, fenced",
        }
    }

    fn fenced(self) -> bool {
        matches!(self, Variant::Sqlx { fenced: true } | Variant::Deadpool { fenced: true })
    }
}

#[derive(Clone)]
struct Client {
    migration: Migration,
    sqlx: PgPool,
    deadpool: Pool,
}

impl Client {
    async fn connect(url: &str, port: u16, writers: u32, instance: &Instance) -> Result<Self> {
        let options: PgConnectOptions = url.parse::<PgConnectOptions>()?.port(port);
        let mut config: tokio_postgres::Config = tokio_postgres::Config::new();
        config.host(options.get_host()).port(port).user(options.get_username());
        config.dbname(options.get_database().context("a database")?);
        let deadpool = Pool::builder(Manager::new(config, NoTls)).max_size(writers as usize).build()?;
        // Not tested before use, as with deadpool.
        let sqlx = PgPoolOptions::new().max_connections(writers).test_before_acquire(false);
        Ok(Self { migration: instance.migration.clone(), sqlx: sqlx.connect_with(options).await?, deadpool })
    }

    /// Runs a transaction that changes one row, and returns how long it took.
    async fn transaction(&self, variant: Variant) -> Result<f64> {
        let id = fastrand::i64(1..=ROWS);
        let began = Instant::now();
        match variant {
            Variant::Sqlx { fenced: false } => {
                let mut tx = self.sqlx.begin().await?;
                sqlx::query(UPDATE).bind(id).execute(&mut *tx).await?;
                tx.commit().await?;
            }
            Variant::Sqlx { fenced: true } => {
                let mut tx = self.migration.begin(&self.sqlx).await?;
                sqlx::query(UPDATE).bind(id).execute(&mut *tx).await?;
                tx.commit().await?;
            }
            Variant::Deadpool { fenced: false } => {
                let mut client = self.deadpool.get().await?;
                let tx = client.transaction().await?;
                let update = tx.prepare_cached(UPDATE).await?;
                tx.execute(&update, &[&id]).await?;
                tx.commit().await?;
            }
            Variant::Deadpool { fenced: true } => {
                let tx = self.migration.begin(&self.deadpool).await?;
                let update = tx.prepare_cached(UPDATE).await?;
                tx.execute(&update, &[&id]).await?;
                tx.commit().await?;
            }
        }
        Ok(began.elapsed().as_secs_f64() * 1e6)
    }
}

pub(crate) async fn run(quick: bool) -> Result<()> {
    let postgres = world::server(&[("shared_preload_libraries", "pg_stat_statements")]).await?;
    let url = postgres.create_database("bench").await?;
    let instance = Instance::start(Ledger::open(url.parse()?).await?, "writer".into()).await?;
    instance.at(Phase::Off).await?;
    let admin = PgPool::connect(&url).await?;
    admin
        .execute(
            "create extension pg_stat_statements; \
             create table accounts (id bigint primary key, balance bigint not null); \
             insert into accounts select g, 0 from generate_series(1, 100000) g",
        )
        .await?;
    admin.execute("vacuum analyze accounts").await?;
    let mut table = Table::new(
        "Cost of the fence for a transaction that updates one row (µs; ratios to the same pool without it)",
        &["p50", "p99", "p50 ratio", "p99 ratio"],
    );
    let hop = proxy::delayed(postgres.port(), ONE_WAY)?;
    for (place, port) in [("same machine", postgres.port()), ("0.5 ms away", hop)] {
        for writers in [1, 8] {
            let client = Client::connect(&url, port, writers, &instance).await?;
            let seconds = if quick { 1 } else { 8 };
            measure(&client, writers, Duration::from_secs(seconds), place, &mut table).await?;
        }
    }
    table.publish("fence")?;
    server_time(&admin).await?;
    Ok(())
}

async fn measure(
    client: &Client,
    writers: u32,
    time: Duration,
    place: &str,
    table: &mut Table,
) -> Result<()> {
    let writing: Vec<_> = (0..writers)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                let mut times: [Vec<f64>; 4] = Default::default();
                for variant in VARIANTS {
                    // Opens connections and prepares statements.
                    client.transaction(variant).await?;
                }
                let end = Instant::now() + time;
                while Instant::now() < end {
                    // In another order each time, because disk and caches remember what ran before.
                    let mut order = [0, 1, 2, 3];
                    fastrand::shuffle(&mut order);
                    for index in order {
                        times[index].push(client.transaction(VARIANTS[index]).await?);
                    }
                }
                anyhow::Ok(times)
            })
        })
        .collect();
    let mut times: [Vec<f64>; 4] = Default::default();
    for writer in writing {
        for (all, some) in times.iter_mut().zip(writer.await??) {
            all.extend(some);
        }
    }
    let mut without = (f64::NAN, f64::NAN);
    for (variant, times) in VARIANTS.iter().zip(&mut times) {
        let (p50, p99) = (quantile(times, 0.5), quantile(times, 0.99));
        let name = format!("{place}, {writers} writers, {}", variant.name());
        if variant.fenced() {
            table.row(name, vec![p50, p99, p50 / without.0, p99 / without.1]);
        } else {
            without = (p50, p99);
            table.row(name, vec![p50, p99, f64::NAN, f64::NAN]);
        }
    }
    Ok(())
}

/// What the server counted for the statements, without reading and parsing messages.
async fn server_time(admin: &PgPool) -> Result<()> {
    let counted: Vec<(String, f64, f64, f64)> = sqlx::query_as(
        "select query, 1000 * mean_exec_time, 1000 * min_exec_time, calls::float8 from pg_stat_statements \
         where query like 'select cutover.fence(%' or query like 'update accounts %' order by query",
    )
    .fetch_all(admin)
    .await?;
    let mut table = Table::new("The same on the server (µs)", &["mean", "min", "calls"]);
    for (query, mean, least, calls) in counted {
        table.row(query, vec![mean, least, calls]);
    }
    table.publish("fence-server")
}
