//! Another shape of change under load: `make demo SHAPE=key`, or another one of [`Shape`].
//!
//! Three instances run in this process, without proxy and flags. Each writer owns its rows, so it knows what every read has to
//! return.

mod kinds;

use std::{
    collections::BTreeMap,
    io::{Write, stdout},
    process::ExitCode,
    sync::Arc,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use cutover::fleet::{Fleet, FleetOptions};
use cutover::health::Health;
use cutover::migration::{
    Agent, Desired, DriverOptions, DualWrite, Error, Key, Migration, PinnedTx, Rows, admin,
};
use cutover::release::Release;
use futures_util::future::try_join_all;
use hdrhistogram::Histogram;
use sqlx::{AssertSqlSafe, PgPool, postgres::PgPoolOptions};

use crate::{
    failure::{Failure, Result},
    ledger::{Ledger, MIGRATION},
    servers::start_postgres,
};
use kinds::{Shape, Side};

const INSTANCES: usize = 3;
const WRITERS: u64 = 6;
/// Rows that each writer reads and writes.
const ROWS_EACH: u64 = 50;
/// How long the load runs in each phase.
const LOOK: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(3600);
const WALK: [&str; 9] =
    ["expand", "backfill", "verify", "ramp:50", "switch", "retire", "ramp:50", "switch", "retire"];

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ShapeArgs {
    /// What changes
    #[arg(value_enum)]
    shape: Shape,
    /// Number of rows of the table
    #[arg(long, default_value_t = 200_000)]
    rows: u64,
    /// Operations per second, half of them writes
    #[arg(long, default_value_t = 300)]
    rate: u32,
}

pub(crate) async fn run(args: ShapeArgs) -> Result<ExitCode> {
    let postgres = start_postgres().await?;
    let url = postgres.create_database("demo").await?;
    let pool = PgPoolOptions::new().max_connections(20).connect(&url).await?;
    say(&format!("{} rows, {} operations/s", args.rows, args.rate))?;
    let create = args.shape.create().replace("{rows}", &args.rows.to_string());
    sqlx::raw_sql(AssertSqlSafe(create)).execute(&pool).await?;
    sqlx::raw_sql("vacuum analyze").execute(&pool).await?;
    let ledger = cutover::ledger::Ledger::open(url.parse().map_err(Failure::from)?).await?;
    let mut agents = Vec::new();
    for number in 1..=INSTANCES {
        agents.push(instance(&args, &pool, &url, number).await?);
    }
    let migrations: Vec<Migration> = agents.iter().filter_map(|agent| agent.migration(MIGRATION)).collect();
    let is_over = Arc::new(AtomicBool::new(false));
    let writers = (0..WRITERS).map(|number| {
        let writer = Writer {
            shape: args.shape,
            migrations: migrations.clone(),
            pool: pool.clone(),
            first: 1 + number * ROWS_EACH,
            pause: Duration::from_secs_f64(WRITERS as f64 / f64::from(args.rate)),
            is_over: Arc::clone(&is_over),
        };
        writer.run()
    });
    let walk = async {
        let walked = walk(&ledger, &Ledger::new(pool.clone())).await;
        is_over.store(true, Ordering::Relaxed);
        walked
    };
    let (walked, tallies) = tokio::join!(walk, try_join_all(writers));
    walked?;
    let mut all = Tally::new()?;
    for tally in tallies? {
        all.wrong.extend(tally.wrong);
        all.done += tally.done;
        all.refused += tally.refused;
        all.took.add(tally.took).map_err(|error| Failure::new(error.to_string()))?;
    }
    let at = |quantile: f64| all.took.value_at_quantile(quantile) as f64 / 1000.0;
    say(&format!(
        "{} operations, {} refused by a closed epoch, {} wrong reads or lost writes; p50 {:.1} ms, p99 {:.1} ms, slowest {:.1} ms",
        all.done,
        all.refused,
        all.wrong.len(),
        at(0.5),
        at(0.99),
        at(1.0)
    ))?;
    for wrong in all.wrong.iter().take(10) {
        say(wrong)?;
    }
    Ok(if all.wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn say(text: &str) -> Result<()> {
    writeln!(stdout(), "{text}")?;
    Ok(())
}

async fn instance(args: &ShapeArgs, pool: &PgPool, url: &str, number: usize) -> Result<Agent> {
    let (health, ledger) =
        (Health::new(), cutover::ledger::Ledger::open(url.parse().map_err(Failure::from)?).await?);
    let release = Release::new("demo", "1")?.with_instance(&format!("i{number}"))?;
    let fleet = Fleet::join(ledger, &release, FleetOptions::default(), &health).await?;
    Ok(Agent::start(fleet, vec![args.shape.spec(pool)?], DriverOptions::default(), &health).await?)
}

/// Forward, half way back, and forward again to the end. Prints how long each phase took to reach.
async fn walk(ledger: &cutover::ledger::Ledger, outside: &Ledger) -> Result<()> {
    for phase in WALK {
        go(ledger, outside, phase).await?;
        tokio::time::sleep(LOOK).await;
    }
    admin::approve(ledger, MIGRATION, "demo").await?;
    go(ledger, outside, "contract").await?;
    let began = Instant::now();
    loop {
        let reports = admin::report(ledger, Some(MIGRATION)).await?;
        if reports.first().is_some_and(|report| report.ended_as.is_some()) {
            return say(&format!("finished after {:.1} s", began.elapsed().as_secs_f64()));
        }
        if began.elapsed() > PATIENCE {
            return Err(Failure::new("the old side was not dropped"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn go(ledger: &cutover::ledger::Ledger, outside: &Ledger, wanted: &str) -> Result<()> {
    let began = Instant::now();
    let desired: Desired = wanted.parse().map_err(|_| Failure::new(format!("{wanted} is no phase")))?;
    admin::set_phase(ledger, MIGRATION, desired, "demo").await?;
    let phase = wanted.split(':').next().unwrap_or(wanted);
    loop {
        let standing = outside.standing().await?.unwrap_or_default();
        if standing.phase == phase && standing.is_settled {
            return say(&format!("{wanted:<9} after {:>6.1} s", began.elapsed().as_secs_f64()));
        }
        if began.elapsed() > PATIENCE {
            let reason = standing.waits_for.unwrap_or_default();
            return Err(Failure::new(format!("{wanted} was not reached: waiting for {reason}")));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[derive(Debug)]
struct Tally {
    done: u64,
    refused: u64,
    wrong: Vec<String>,
    /// Microseconds per operation.
    took: Histogram<u64>,
}

impl Tally {
    fn new() -> Result<Self> {
        Ok(Self {
            done: 0,
            refused: 0,
            wrong: Vec::new(),
            took: Histogram::new_with_bounds(1, 600_000_000, 3)?,
        })
    }
}

/// A client that owns some rows.
struct Writer {
    shape: Shape,
    migrations: Vec<Migration>,
    pool: PgPool,
    first: u64,
    pause: Duration,
    is_over: Arc<AtomicBool>,
}

impl Writer {
    async fn run(self) -> Result<Tally> {
        let (mut tally, mut last) = (Tally::new()?, BTreeMap::<i64, String>::new());
        while !self.is_over.load(Ordering::Relaxed) {
            let key = (self.first + fastrand::u64(..ROWS_EACH)).cast_signed();
            let migration = self.migrations[fastrand::usize(..self.migrations.len())].clone();
            let began = Instant::now();
            let outcome = match last.get(&key).filter(|_| fastrand::bool()) {
                Some(expected) => match self.read(migration, key).await {
                    Ok(found) if found.as_deref() == Some(expected.as_str()) => Ok(()),
                    Ok(found) => {
                        tally.wrong.push(format!("row {key}: {expected} was written and {found:?} read"));
                        Ok(())
                    }
                    Err(error) => Err(error),
                },
                None => {
                    let value = format!("v{} w", fastrand::u32(..));
                    self.write(migration, key, &value).await.map(|()| {
                        last.insert(key, value);
                    })
                }
            };
            match outcome {
                Ok(()) => tally.done += 1,
                Err(Error::NotInFleet | Error::EpochClosed) => tally.refused += 1,
                Err(error) => return Err(error.into()),
            }
            let elapsed = began.elapsed();
            tally.took.saturating_record(u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX));
            tokio::time::sleep(self.pause.saturating_sub(elapsed)).await;
        }
        Ok(tally)
    }

    async fn read(&self, migration: Migration, key: i64) -> Result<Option<String>, Error> {
        let [old, new] = self.shape.sides();
        let get = async |side: &&'static Side| -> Result<Option<String>, Error> {
            Ok(sqlx::query_scalar(side.get).bind(key).fetch_optional(&self.pool).await?)
        };
        DualWrite::new(migration, old, new).read_with(Key::of(&key), get, get).await
    }

    async fn write(&self, migration: Migration, key: i64, value: &str) -> Result<(), Error> {
        let [old, new] = self.shape.sides();
        let mut tx = migration.begin(&self.pool).await?;
        let put = async |side: &&'static Side, tx: &mut PinnedTx| -> Result<(), Error> {
            sqlx::query(side.put).bind(key).bind(value).execute(&mut **tx).await?;
            Ok(())
        };
        match self.shape {
            Shape::Split | Shape::OwnTable | Shape::Partitions => {
                DualWrite::new(migration, old, new).write_with(&mut tx, Rows::one(&key), put, put).await?;
            }
            // The trigger mirrors the write.
            Shape::Columns => {
                let side = if migration.columns(&tx)?.is_new() { new } else { old };
                put(&side, &mut tx).await?;
            }
            Shape::Key | Shape::Constraints => put(&old, &mut tx).await?,
        }
        tx.commit().await
    }
}
