//! One instance of a service in its own process, which is this test binary started again. It reads and writes a
//! column that is being migrated, and prints each operation.
//!
//! The lines are `begin <id> <key> <value> <time>`, then `done <id> <time>` or `none <id>` (not
//! written), `read <key> <value> <start> <end>`, and `held`. Times are nanoseconds of CLOCK_MONOTONIC, which is
//! one clock for all processes.

use std::path::PathBuf;
use std::time::Duration;

use cutover::fleet::{Fleet, FleetOptions};
use cutover::health::Health;
use cutover::ledger::Ledger;
use cutover::migration::ColumnMigration;
use cutover::migration::{Agent, DriverOptions, Error, Isolation, Migration, MigrationSpec, PinnedTx};
use cutover::migration::{PhaseRange, Side};
use cutover::release::Release;
use rustix::time::{ClockId, clock_gettime};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool};
use tokio::time::{sleep, timeout};

use super::Outcome;

/// The keys up to this one are written continuously.
const BUSY: i64 = 14;
/// The key of a write that stops half way. No other write hides its loss. The number is even, so `ramp:50` reads
/// it from the new side.
const HELD: i64 = 16;
/// The keys, one per worker, of writes that are sent while the instance is cut off. No other write hides their loss.
pub(crate) const COLD: [i64; 3] = [18, 20, 22];
pub(crate) const KEYS: i64 = 22;
pub(crate) const LEASE: Duration = Duration::from_secs(2);
/// The time limit of a statement. It is longer than the delay of messages that are held back.
const LIMIT: Duration = Duration::from_secs(5);

pub(crate) fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// Not a test: the tests start it as an instance.
#[test]
#[ignore = "started by the other tests"]
fn process() {
    let Ok(url) = std::env::var("FAULTS_URL") else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(serve(&url)).unwrap();
}

async fn serve(url: &str) -> Outcome {
    let name = std::env::var("FAULTS_NAME")?;
    let folder = PathBuf::from(std::env::var("FAULTS_FOLDER")?);
    let options = url.parse::<PgConnectOptions>()?.application_name(&name);
    let health = Health::new();
    let fleet_options =
        FleetOptions { lease: LEASE, renew_every: Duration::from_millis(400), ..FleetOptions::default() };
    let release = Release::new("shop", "1")?.with_instance(name.as_str())?;
    let ledger = Ledger::open(options.clone()).await?;
    let fleet = Fleet::join(ledger, &release, fleet_options, &health).await?;
    let plan = ColumnMigration::new(connect(&options), "orders")
        .key("id")
        .column("old_status", "new_status", "text")
        .forward("old_status")
        .backward("new_status")
        .build()?;
    let spec = MigrationSpec::new("status", PhaseRange::FULL).plan(plan);
    let driver =
        DriverOptions { transaction_limit: Duration::from_secs(2), leadership_lease: Duration::from_secs(2) };
    let agent = Agent::start(fleet, vec![spec], driver, &health).await?;
    let migration = agent.migration("status").ok_or("declared")?;
    let levels = [Isolation::ReadCommitted, Isolation::RepeatableRead, Isolation::Serializable];
    let workers: Vec<_> = levels.into_iter().enumerate().collect();
    let workers = workers.into_iter().map(|(number, isolation)| {
        let worker = Worker {
            name: format!("{name}.{number}"),
            hold: folder.join(format!("hold-{name}-{number}")),
            cold: folder.join(format!("cold-{name}")),
            own: COLD[number],
            pool: connect(&options),
            options: options.clone(),
            migration: migration.clone(),
            isolation,
        };
        tokio::spawn(worker.run())
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await?;
    }
    Ok(())
}

fn connect(options: &PgConnectOptions) -> PgPool {
    PgPoolOptions::new().max_connections(2).acquire_timeout(LIMIT).connect_lazy_with(options.clone())
}

/// Writes and reads in turn. Each worker has its own isolation level.
struct Worker {
    name: String,
    /// While this file exists, a write stops at the point that the file names.
    hold: PathBuf,
    /// While this file exists, the worker writes only its own cold key.
    cold: PathBuf,
    own: i64,
    pool: PgPool,
    options: PgConnectOptions,
    migration: Migration,
    isolation: Isolation,
}

/// A write that failed.
enum Failed {
    /// Nothing was written, and nothing will be.
    Certainly(String),
    /// It may have been written.
    Perhaps(String),
}

impl Worker {
    async fn run(mut self) {
        for number in 0_u64.. {
            let id = format!("{}.{number}", self.name);
            let is_held = ["fenced", "old", "new"].into_iter().any(|point| self.is_to_hold(point));
            let key = match (is_held, self.cold.exists()) {
                (true, _) => HELD,
                (false, true) => self.own,
                (false, false) => fastrand::i64(1..=BUSY),
            };
            println!("begin {id} {key} {id} {}", now());
            let failure = match self.write(key, &id).await {
                Ok(()) => {
                    println!("done {id} {}", now());
                    None
                }
                Err(Failed::Certainly(error)) => {
                    println!("none {id}");
                    Some(error)
                }
                Err(Failed::Perhaps(error)) => Some(error),
            };
            let start = now();
            let key = if self.is_to_hold("pinned") { 1 } else { fastrand::i64(1..=KEYS) };
            let failure = match self.read(key).await {
                Ok(value) => {
                    println!("read {key} {value} {start} {}", now());
                    failure
                }
                Err(error) => Some(error),
            };
            if let Some(error) = failure {
                println!("error {} {error}", self.name);
                if error.contains("no answer") || error.contains("timed out") {
                    // The connections are dead, and a service would open new ones.
                    self.pool = connect(&self.options);
                }
            }
            sleep(Duration::from_millis(fastrand::u64(120..240))).await;
        }
    }

    async fn write(&self, key: i64, value: &str) -> Result<(), Failed> {
        let mut tx = within(self.migration.begin_isolated(&self.pool, self.isolation))
            .await
            .map_err(Failed::Certainly)?;
        self.hold("fenced").await;
        for (side, point) in [(Side::Old, "old"), (Side::New, "new")] {
            if tx.phase().writes(side) {
                within(set(&mut tx, side, key, value)).await.map_err(Failed::Certainly)?;
            }
            self.hold(point).await;
        }
        within(tx.commit()).await.map_err(Failed::Perhaps)
    }

    async fn read(&self, key: i64) -> Result<String, String> {
        let read = self
            .migration
            .read(async |pin| {
                let side = match (pin.phase().may_read(Side::Old), pin.phase().may_read(Side::New)) {
                    (true, true) if key % 2 == 0 => Side::New,
                    (true, _) => Side::Old,
                    (false, _) => Side::New,
                };
                self.hold("pinned").await;
                let query = format!("select coalesce({}, 'none') from orders where id = $1", column(side));
                let query = sqlx::query_scalar(AssertSqlSafe(query)).bind(key);
                match timeout(LIMIT, query.fetch_one(&self.pool)).await {
                    Ok(value) => Ok::<_, Error>(Some(value?)),
                    Err(_) => Ok(None),
                }
            })
            .await;
        match read {
            Ok(Some(value)) => Ok(value),
            Ok(None) => Err("no answer".into()),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn hold(&self, point: &str) {
        if self.is_to_hold(point) {
            println!("held {} {point}", self.name);
            while self.is_to_hold(point) {
                sleep(Duration::from_millis(2)).await;
            }
        }
    }

    fn is_to_hold(&self, point: &str) -> bool {
        std::fs::read_to_string(&self.hold).is_ok_and(|text| text == point)
    }
}

fn column(side: Side) -> &'static str {
    match side {
        Side::Old => "old_status",
        Side::New => "new_status",
    }
}

async fn set(tx: &mut PinnedTx, side: Side, key: i64, value: &str) -> Result<(), Error> {
    let statement = format!("update orders set {} = $2 where id = $1", column(side));
    sqlx::query(AssertSqlSafe(statement)).bind(key).bind(value).execute(&mut **tx).await?;
    Ok(())
}

async fn within<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, String> {
    match timeout(LIMIT, work).await {
        Ok(outcome) => outcome.map_err(|error| error.to_string()),
        Err(_) => Err("no answer".into()),
    }
}
