//! Each shape of change from `off` to `contract` under load, half way back, and forward again, by processes that are killed in
//! every phase and during every move. An independent checker judges what clients wrote and read.

use std::env;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cutover::fleet::FleetOptions;
use cutover::migration::{DriverOptions, Error, Migration, MigrationSpec, PinnedTx};
use cutover_checker::Recorder;
use cutover_testkit::{Folder, Process, Signal};
use futures_util::future::try_join_all;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::time::sleep;

use crate::journal::{Journal, collect, now};
use crate::world::{Fleet, Outcome, PACE, World};
use crate::{column_shapes, schema_shapes, table_shapes};

/// The rows that are read and written. They are the first ones of the table.
const ROWS: u64 = 60;
/// Those among them that are used most. The others keep what they hold for longer than a move takes.
const HOT: u64 = 6;
const WALK: [&str; 9] =
    ["expand", "backfill", "verify", "ramp:50", "switch", "retire", "switch", "ramp:50", "retire"];
const CLIENTS: usize = 2;

/// A change, and what clients do with it meanwhile. A value of the test is a number, and its text is the same on both sides.
pub(crate) trait Shape {
    fn name(&self) -> &'static str;

    /// Makes the tables. The rows that are used hold the value 0.
    async fn create(&self, world: &World) -> Outcome;

    fn spec(&self, world: &World) -> Outcome<MigrationSpec>;

    fn text(&self, value: u32) -> String;

    /// What is compared of a text.
    fn canonical(&self) -> fn(&str) -> String {
        str::to_owned
    }

    async fn get(&self, pool: &PgPool, migration: &Migration, key: u64) -> Result<String, Error>;

    /// Returns whether the value was written. Otherwise it certainly was not.
    async fn put(&self, pool: &PgPool, migration: &Migration, key: u64, value: u32) -> Result<bool, Error>;

    /// Writes without the library, to the old side only. As [`Shape::put`] otherwise.
    async fn put_external(&self, pool: &PgPool, key: u64, value: u32) -> Result<bool, Error>;

    /// An external write that the change does not concern, if there is such.
    async fn write_elsewhere(&self, _pool: &PgPool, _key: u64) -> Result<(), Error> {
        Ok(())
    }

    /// Whether everything is as it should be in this phase. `first`: what this returned before the first phase.
    async fn check(&self, world: &World, phase: &str, first: &[String]) -> Outcome<Vec<String>>;

    /// The value of a row when the change has ended.
    async fn last(&self, pool: &PgPool, key: u64) -> Outcome<String>;
}

/// A pinned transaction, unless this instance may not begin one now.
pub(crate) async fn begin(migration: &Migration, pool: &PgPool) -> Result<Option<PinnedTx>, Error> {
    match migration.begin(pool).await {
        Ok(tx) => Ok(Some(tx)),
        Err(Error::NotInFleet | Error::EpochClosed | Error::EpochUnknown) => Ok(None),
        Err(error) => Err(error),
    }
}

fn some_key() -> u64 {
    if fastrand::u8(..10) == 0 { fastrand::u64(1..=ROWS) } else { fastrand::u64(1..=HOT) }
}

async fn join(shape: &impl Shape, world: &World, name: &str) -> Outcome<Fleet> {
    let (lease, renew_every) = (Duration::from_secs(2), Duration::from_millis(400));
    let options = FleetOptions { lease, renew_every, ..FleetOptions::default() };
    let spec = shape.spec(world)?.external_write_quiet_period(Duration::from_millis(300));
    // Each kill ends the driver.
    let driver = DriverOptions { leadership_lease: lease, ..DriverOptions::default() };
    world.join_to_drive(vec![spec], name, options, driver).await
}

/// Not a test: the body of a separate process with one instance.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by the tests of shapes"]
async fn process() -> Outcome {
    let (Ok(url), Ok(name), Ok(folder), Ok(wanted)) = (
        env::var("SHAPE_URL"),
        env::var("SHAPE_INSTANCE"),
        env::var("SHAPE_JOURNALS"),
        env::var("SHAPE_NAME"),
    ) else {
        return Ok(());
    };
    let pool = PgPoolOptions::new().max_connections(8).connect(&url).await?;
    let life = Life { world: World { pool, url }, name, journals: folder.into() };
    if let Some(shape) = column_shapes::ALL.iter().find(|shape| shape.name() == wanted) {
        return life.live(shape).await;
    }
    if let Some(shape) = table_shapes::ALL.iter().find(|shape| shape.name() == wanted) {
        return life.live(shape).await;
    }
    let shape =
        schema_shapes::ALL.iter().find(|shape| shape.name() == wanted).ok_or("a shape of this name")?;
    life.live(shape).await
}

struct Life {
    world: World,
    name: String,
    journals: PathBuf,
}

impl Life {
    /// Serves clients until the process is killed.
    async fn live(&self, shape: &impl Shape) -> Outcome {
        let member = join(shape, &self.world, &self.name).await?;
        let clients = (0..CLIENTS).map(async |number| {
            let journal = Journal::new(&self.journals, &format!("{}-{number}", self.name))?;
            loop {
                self.operate(shape, &member.migration, &journal).await?;
                sleep(PACE).await;
            }
        });
        try_join_all(clients).await.map(|ended: Vec<()>| drop(ended))
    }

    async fn operate(&self, shape: &impl Shape, migration: &Migration, journal: &Journal) -> Outcome {
        let (key, start) = (some_key(), now());
        if fastrand::bool() {
            return match shape.get(&self.world.pool, migration, key).await {
                Ok(text) => journal.read(key, &text, start),
                Err(Error::NotInFleet) => Ok(()),
                Err(error) => Err(error.into()),
            };
        }
        let value = fastrand::u32(1..100_000);
        journal.begin_write(key, &shape.text(value))?;
        journal.end_write(shape.put(&self.world.pool, migration, key, value).await?)
    }
}

/// Writes without the library until `is_retired`, and elsewhere until `is_over`.
async fn external_writer(
    shape: &impl Shape,
    world: &World,
    journal: Journal,
    [is_retired, is_over]: [&AtomicBool; 2],
) -> Outcome {
    while !is_over.load(Ordering::SeqCst) {
        let (key, value) = (some_key(), fastrand::u32(1..100_000));
        shape.write_elsewhere(&world.pool, key).await?;
        if !is_retired.load(Ordering::SeqCst) {
            journal.begin_write(key, &shape.text(value))?;
            journal.end_write(shape.put_external(&world.pool, key, value).await?)?;
        }
        sleep(PACE).await;
    }
    Ok(())
}

/// The processes that take part.
struct Processes<'a> {
    world: &'a World,
    folder: Folder,
    journals: PathBuf,
    shape: &'static str,
    started: usize,
    running: Vec<(String, Process)>,
}

impl Processes<'_> {
    fn start(&mut self) -> Outcome {
        self.started += 1;
        let name = format!("p{}", self.started);
        let mut command = Command::new(env::current_exe()?);
        command
            .args(["--exact", "shapes_killed::process", "--ignored", "--nocapture", "--test-threads=1"])
            .env("SHAPE_URL", &self.world.url)
            .env("SHAPE_INSTANCE", &name)
            .env("SHAPE_JOURNALS", &self.journals)
            .env("SHAPE_NAME", self.shape);
        let process = Process::spawn(&self.folder, &name, Signal::KILL, &command)?;
        self.running.push((name, process));
        Ok(())
    }

    /// Kills the process that drives, at some point in the move or right after it, and starts another one.
    async fn kill_driver(&mut self) -> Outcome {
        sleep(Duration::from_millis(fastrand::u64(0..500))).await;
        let driver = "select i.name from cutover.instances i join cutover.migrations m on m.driver = i.id \
            where m.name = 'status'";
        let driver: Option<String> = sqlx::query_scalar(driver).fetch_optional(&self.world.pool).await?;
        let index = self.running.iter().position(|(name, _)| Some(name) == driver.as_ref()).unwrap_or(0);
        self.kill(index).await?;
        self.start()
    }

    /// Once it has clients. The last one starts when little is left to do.
    async fn kill(&mut self, index: usize) -> Outcome {
        let (name, process) = self.running.swap_remove(index);
        let journals = (0..CLIENTS).map(|number| self.journals.join(format!("{name}-{number}")));
        let journals: Vec<PathBuf> = journals.collect();
        let serves = async || process.exited().is_some() || journals.iter().all(|journal| journal.exists());
        self.world.until("clients of the process", serves).await?;
        if let Some(status) = process.exited() {
            return Err(format!("{name} ended by itself, {status}: {}", process.log_tail()).into());
        }
        Ok(process.kill().await?)
    }
}

async fn walk(
    shape: &impl Shape,
    world: &World,
    processes: &mut Processes<'_>,
    is_retired: &AtomicBool,
    first: &[String],
) -> Outcome {
    for phase in WALK {
        if phase == "retire" {
            is_retired.store(true, Ordering::SeqCst);
        }
        world.ask(phase).await?;
        processes.kill_driver().await?;
        world.go(phase).await?;
        shape.check(world, phase, first).await?;
    }
    world.approve().await?;
    world.ask("contract").await?;
    processes.kill_driver().await?;
    world.ended().await?;
    while !processes.running.is_empty() {
        processes.kill(0).await?;
    }
    Ok(())
}

/// Every phase, with clients of each process and an external writer.
pub(crate) async fn killed_all_the_way(shape: &impl Shape) -> Outcome {
    let world = World::new(1).await?;
    shape.create(&world).await?;
    let folder = Folder::new("shapes")?;
    let journals = folder.subfolder("journals")?;
    let external = Journal::new(&journals, "external")?;
    let mut processes = Processes {
        world: &world,
        folder,
        journals: journals.clone(),
        shape: shape.name(),
        started: 0,
        running: Vec::new(),
    };
    processes.start()?;
    processes.start()?;
    let is_admitted = "select count(*) = 2 from cutover.instances where admitted";
    world
        .until("both processes", async || {
            sqlx::query_scalar(is_admitted).fetch_one(&world.pool).await.unwrap_or(false)
        })
        .await?;
    let [is_retired, is_over] = [(); 2].map(|()| AtomicBool::new(false));
    let first = shape.check(&world, "off", &[]).await?;
    let walk = async {
        let walked = walk(shape, &world, &mut processes, &is_retired, &first).await;
        is_over.store(true, Ordering::SeqCst);
        walked
    };
    let (walked, written) =
        tokio::join!(walk, external_writer(shape, &world, external, [&is_retired, &is_over]));
    walked?;
    written?;
    shape.check(&world, "contract", &first).await?;
    judge(shape, &world, &journals).await
}

async fn judge(shape: &impl Shape, world: &World, journals: &std::path::Path) -> Outcome {
    let recorder = Recorder::new(4, shape.canonical());
    let (clients, unknown) = collect(journals, &recorder)?;
    assert_eq!(clients, 1 + CLIENTS * (2 + WALK.len() + 1), "every process has served clients");
    let operations = recorder.operations();
    assert!(operations > 500, "{operations} operations, {unknown} of unknown outcome, are not a load");
    let mut history = recorder.history();
    for key in 1..=ROWS {
        history.initial(key, &shape.text(0));
        history.last(key, &shape.last(&world.pool, key).await?);
    }
    let verdict = history.check();
    assert_eq!((verdict.stale_reads, verdict.lost_writes), (0, 0), "{verdict:?}");
    // A key with many writes of unknown outcome gets a simpler check.
    assert!(verdict.keys_checked_simply < HOT / 2, "{verdict:?}");
    Ok(())
}
