//! Instances that are killed, paused or cut off at each step of a move, and what their clients see.
//!
//! Each case ends with the fleet in the desired phase, every living instance serving again, and a history with no
//! lost write and no stale read.

mod failover;
#[expect(clippy::print_stdout, reason = "it prints its operations")]
mod instance;
mod world;

use std::fmt;
use std::time::Duration;

use cutover::fleet::{Fleet, FleetOptions};
use cutover::health::Health;
use cutover::ledger::Ledger;
use cutover::migration::PhaseRange;
use cutover::migration::{Agent, DriverOptions, Error, MigrationSpec};
use cutover::release::Release;
use cutover_testkit::{Postgres, PostgresOptions, Signal, wait_until};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::sync::Semaphore;
use world::{BOUND, World};

use instance::COLD;

pub(crate) type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The fault of an instance.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    /// `kill -9`.
    Killed,
    /// Stopped until the other instances have moved on without it.
    Paused,
    /// Cut off. What it sends arrives later.
    Delayed,
    /// Cut off. Its connections stay open, and nothing arrives.
    Lost,
    /// It only takes long.
    Slow,
}

/// The step of the move at which the fault happens.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    /// The epoch is open. The victim has an operation of the previous epoch and cannot acknowledge.
    BeforeAcknowledging,
    /// The victim has acknowledged. No epoch is closed.
    BeforeClose,
    /// The previous epoch is closed. One of its transactions still runs.
    BeforeDrained,
    /// The previous epoch is drained. The next one is not open.
    BeforeMove,
    /// The next epoch is open, and the victim does not know.
    BeforeNoticing,
    /// The victim waits within the fence.
    InFence,
    /// Inside a read of the victim, between the choice of a side and the query.
    Reading,
    /// Inside a write transaction of the victim: after the fence, the old side, the new side. The number is the
    /// worker's: READ COMMITTED, REPEATABLE READ, SERIALIZABLE.
    Fenced(u8),
    OldWritten(u8),
    NewWritten(u8),
}

/// The move.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// A late write of only one side would be lost.
    Forward,
    /// A late read of the old side would be stale.
    Away,
    /// A late read of the new side would be stale.
    Back,
}

impl Way {
    fn ends(self) -> (&'static str, &'static str) {
        match self {
            Way::Forward => ("off", "ramp:50"),
            Way::Away => ("ramp:50", "retire"),
            Way::Back => ("switch", "off"),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Case {
    number: usize,
    way: Way,
    fault: Fault,
    is_driver: bool,
    step: Step,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let victim = if self.is_driver { "driver" } else { "instance" };
        write!(f, "{}: {victim} {:?} {:?} on the way {:?}", self.number, self.fault, self.step, self.way)
    }
}

/// Sessions of the test that the next step waits for.
struct Blockers(Vec<PgConnection>);

impl Blockers {
    async fn put(&mut self, url: &str, statement: &str) -> Outcome {
        let mut session = PgConnection::connect(url).await?;
        session.execute(AssertSqlSafe(format!("begin; {statement}"))).await?;
        self.0.push(session);
        Ok(())
    }

    /// Releases the oldest one.
    async fn release(&mut self) -> Outcome {
        if !self.0.is_empty() {
            self.0.remove(0).close().await?;
        }
        Ok(())
    }
}

/// True when the tables of the ledger exist.
pub(crate) const INSTALLED: &str =
    "select exists (select from pg_tables where schemaname = 'cutover' and tablename = 'history')";
const FLEET: &str = "select from cutover.fleets for share";

impl Case {
    async fn run(self, postgres: &Postgres) -> Outcome {
        let mut world = World::new(postgres, &format!("case_{}", self.number)).await?;
        for name in ["a", "b", "c"] {
            world.start(postgres, name).await?;
        }
        world.until(INSTALLED).await?;
        world.serving(3).await?;
        // With the new column in place, no DDL waits for a transaction that is held.
        let (from, to) = self.way.ends();
        world.go("expand").await?;
        world.go(from).await?;
        let victim = world.victim(self.is_driver).await?;
        world.busy(victim).await?;
        let held = self.stop_at_step(postgres, &world, victim, to).await?;
        let target = to.split(':').next().unwrap_or(to);
        if self.fault == Fault::Slow {
            // The fleet waits for it, and says so.
            let name = &world.instances[victim].name;
            let part = format!("%instance {name} with 1 op%");
            world
                .until(&format!("select coalesce(waits_for, '') like '{part}' from cutover.migrations"))
                .await?;
        } else {
            world.settled(target).await.map_err(|error| format!("without the victim: {error}"))?;
        }
        self.heal(&world, victim, held).await?;
        world.settled(target).await?;
        let alive = if self.fault == Fault::Killed { 2 } else { 3 };
        world.serving(alive).await?;
        for instance in 0..3 {
            if self.fault != Fault::Killed || instance != victim {
                world.busy(instance).await?;
            }
        }
        // The fleet can still move.
        world.go("switch").await?;
        let verdict = world.judge().await?;
        if verdict.is_clean() && verdict.reads > 100 && verdict.writes > 100 {
            return Ok(());
        }
        Err(format!("{verdict:#?}").into())
    }

    /// Goes to the step, applies the fault to the victim, and continues.
    async fn stop_at_step(
        self,
        postgres: &Postgres,
        world: &World,
        victim: usize,
        to: &str,
    ) -> Outcome<Option<u8>> {
        let url = &postgres.url(&world.database);
        let epoch = world.epoch().await?;
        let name = &world.instances[victim].name;
        let mut blockers = Blockers(Vec::new());
        let point = match self.step {
            Step::BeforeAcknowledging | Step::BeforeClose => Some((0, "fenced")),
            Step::Reading => Some((0, "pinned")),
            Step::Fenced(worker) => Some((worker, "fenced")),
            Step::OldWritten(worker) => Some((worker, "old")),
            Step::NewWritten(worker) => Some((worker, "new")),
            _ => None,
        };
        if let Some((worker, point)) = point {
            hold(world, victim, worker, point).await?;
        }
        let lock =
            format!("select pg_advisory_xact_lock{{}}(1129644032 + id, {epoch}) from cutover.migrations");
        match self.step {
            Step::BeforeDrained | Step::BeforeMove | Step::BeforeNoticing => {
                blockers.put(url, &lock.replace("{}", "_shared")).await?;
            }
            Step::InFence => blockers.put(url, &lock.replace("{}", "")).await?,
            _ => {}
        }
        let waits_in_fence = format!(
            "select exists (select from pg_locks l join pg_stat_activity a using (pid) where l.locktype = 'advisory' \
             and not l.granted and a.application_name = '{name}')"
        );
        match self.step {
            Step::InFence => world.until(&waits_in_fence).await?,
            Step::Reading | Step::Fenced(_) | Step::OldWritten(_) | Step::NewWritten(_) => {}
            _ => {
                world.want(to).await?;
                world.until(&format!("select epoch > {epoch} from cutover.migrations")).await?;
            }
        }
        let acknowledged = format!(
            "select a.epoch > {epoch} from cutover.acknowledgements a join cutover.instances i on i.id = a.instance_id \
             where i.name = '{name}'"
        );
        match self.step {
            Step::BeforeClose => {
                blockers.put(url, FLEET).await?;
                release(world, victim, 0)?;
                world.until(&acknowledged).await?;
            }
            Step::BeforeDrained | Step::BeforeMove | Step::BeforeNoticing => {
                world
                    .until(&format!("select closed_at is not null from cutover.epochs where epoch = {epoch}"))
                    .await?;
            }
            _ => {}
        }
        if matches!(self.step, Step::BeforeMove | Step::BeforeNoticing) {
            blockers.put(url, FLEET).await?;
            blockers.release().await?;
            world
                .until(&format!("select drained_at is not null from cutover.epochs where epoch = {epoch}"))
                .await?;
        }
        if matches!(self.fault, Fault::Delayed | Fault::Lost) {
            // Nothing overwrites what it sends from here on, even if that arrives late.
            let instance = &world.instances[victim];
            std::fs::write(cold_file(world, victim), "")?;
            let is_cold = |line: &str| {
                COLD.iter().any(|key| line.starts_with("begin") && line.contains(&format!(" {key} ")))
            };
            wait_until("cold keys", BOUND, async || {
                Ok::<_, Error>(self.step == Step::InFence || instance.log().lines().any(is_cold))
            })
            .await?;
        }
        if self.step == Step::BeforeNoticing {
            if !self.is_driver {
                // It receives nothing, from before the move.
                self.cut_off(world, victim)?;
            }
            blockers.release().await?;
            world.until(&format!("select epoch > {epoch} + 1 from cutover.migrations")).await?;
        }
        self.apply(world, victim).await?;
        world.want(to).await?;
        while !blockers.0.is_empty() {
            blockers.release().await?;
        }
        Ok(point.map(|(worker, _)| worker))
    }

    fn cut_off(self, world: &World, victim: usize) -> Outcome {
        match self.fault {
            Fault::Killed | Fault::Paused => world.instances[victim].process.signal(Signal::STOP)?,
            Fault::Delayed => world.instances[victim].gate.hold(),
            Fault::Lost => world.instances[victim].gate.lose(),
            Fault::Slow => {}
        }
        Ok(())
    }

    async fn apply(self, world: &World, victim: usize) -> Outcome {
        match self.fault {
            Fault::Killed => world.instances[victim].process.kill().await?,
            _ => self.cut_off(world, victim)?,
        }
        Ok(())
    }

    async fn heal(self, world: &World, victim: usize, held: Option<u8>) -> Outcome {
        let _ = std::fs::remove_file(cold_file(world, victim));
        world.instances[victim].process.signal(Signal::CONT)?;
        world.instances[victim].gate.open();
        if let Some(worker) = held {
            release(world, victim, worker)?;
        }
        Ok(())
    }
}

fn cold_file(world: &World, victim: usize) -> std::path::PathBuf {
    world.folder.path().join(format!("cold-{}", world.instances[victim].name))
}

fn hold_file(world: &World, victim: usize, worker: u8) -> std::path::PathBuf {
    world.folder.path().join(format!("hold-{}-{worker}", world.instances[victim].name))
}

/// Makes the victim stop inside its next write transaction.
async fn hold(world: &World, victim: usize, worker: u8, point: &str) -> Outcome {
    let instance = &world.instances[victim];
    std::fs::write(hold_file(world, victim, worker), point)?;
    let line = format!("held {}.{worker} {point}", instance.name);
    wait_until(&line, BOUND, async || Ok::<_, std::io::Error>(instance.log().contains(&line))).await?;
    Ok(())
}

fn release(world: &World, victim: usize, worker: u8) -> Outcome {
    match std::fs::remove_file(hold_file(world, victim, worker)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Cases that run at the same time, over all tests. Each has three processes. With too many of them on a small
/// machine, leases expire and steps of the driver run out of time for lack of CPU.
static PLACES: Semaphore = Semaphore::const_new(3);

async fn run_all(cases: Vec<Case>) -> Outcome {
    let settings = vec![("max_connections".to_owned(), "400".to_owned())];
    let postgres = Postgres::start(PostgresOptions { settings, ..PostgresOptions::default() }).await?;
    let postgres = &postgres;
    let mut running: FuturesUnordered<_> = cases
        .into_iter()
        .map(|case| async move {
            let _place = PLACES.acquire().await;
            let outcome = tokio::time::timeout(Duration::from_secs(200), case.run(postgres)).await;
            (case, outcome.unwrap_or_else(|_| Err("took too long".into())))
        })
        .collect();
    let mut failures = Vec::new();
    while let Some((case, outcome)) = running.next().await {
        if let Err(error) = outcome {
            failures.push(format!("{case}\n{error}"));
        }
    }
    assert!(failures.is_empty(), "{} cases failed:\n{}", failures.len(), failures.join("\n\n"));
    Ok(())
}

fn cases(faults: &[Fault], steps: &[(Way, Step)], victims: &[bool]) -> Vec<Case> {
    let mut cases = Vec::new();
    for &(way, step) in steps {
        for &fault in faults {
            for &is_driver in victims {
                cases.push(Case { number: cases.len(), way, fault, is_driver, step });
            }
        }
    }
    // The numbers of the cases to run alone.
    if let Ok(only) = std::env::var("CASES") {
        cases.retain(|case| only.split(',').any(|number| number == case.number.to_string()));
    }
    cases
}

const FAULTS: [Fault; 4] = [Fault::Killed, Fault::Paused, Fault::Delayed, Fault::Lost];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_at_any_step_loses_no_write_and_reads_nothing_stale() -> Outcome {
    let steps = [
        (Way::Away, Step::BeforeAcknowledging),
        (Way::Away, Step::BeforeClose),
        (Way::Forward, Step::BeforeDrained),
        (Way::Away, Step::BeforeMove),
        (Way::Away, Step::BeforeNoticing),
    ];
    run_all(cases(&FAULTS, &steps, &[false])).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_of_the_driver_causes_no_lost_write_or_stale_read() -> Outcome {
    let steps = [
        (Way::Away, Step::BeforeClose),
        (Way::Forward, Step::BeforeDrained),
        (Way::Away, Step::BeforeMove),
        (Way::Away, Step::BeforeNoticing),
    ];
    run_all(cases(&[Fault::Killed, Fault::Paused, Fault::Lost], &steps, &[true])).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_stopped_while_it_joins_delays_no_move() -> Outcome {
    let _place = PLACES.acquire().await;
    let postgres = Postgres::start(PostgresOptions::default()).await?;
    for pause in [true, false] {
        let mut world = World::new(&postgres, &format!("joining_{pause}")).await?;
        for name in ["a", "b"] {
            world.start(&postgres, name).await?;
        }
        world.until(INSTALLED).await?;
        world.serving(2).await?;
        // The join waits for this lock and gets it while the process is stopped.
        let mut blockers = Blockers(Vec::new());
        blockers.put(&postgres.url(&world.database), "select from cutover.fleets for no key update").await?;
        world.start(&postgres, "late").await?;
        let waits = "select exists (select from pg_stat_activity where application_name = 'late' and wait_event_type = 'Lock')";
        world.until(waits).await?;
        let late = &world.instances[2];
        if pause {
            late.process.signal(Signal::STOP)?
        } else {
            late.gate.hold()
        }
        blockers.release().await?;
        world.go("expand").await?;
        late.process.signal(Signal::CONT)?;
        late.gate.open();
        world.serving(3).await?;
        world.busy(2).await?;
        let verdict = world.judge().await?;
        assert!(verdict.is_clean(), "{verdict:#?}");
    }
    Ok(())
}

/// With one thread, nothing of this process runs while it sleeps.
#[tokio::test]
async fn a_read_paused_beyond_the_lease_is_not_returned() -> Outcome {
    let url = Postgres::fresh_database().await?;
    const LEASE: Duration = Duration::from_secs(4);
    let options =
        FleetOptions { lease: LEASE, renew_every: Duration::from_millis(200), ..FleetOptions::default() };
    let (health, release) = (Health::new(), Release::new("shop", "1")?.with_instance("a")?);
    let fleet = Fleet::join(Ledger::open(url.parse()?).await?, &release, options, &health).await?;
    let specs = vec![MigrationSpec::new("status", PhaseRange::FULL)];
    let agent = Agent::start(fleet, specs, DriverOptions::default(), &health).await?;
    let migration = agent.migration("status").ok_or("declared")?;
    let admitted = async || Ok::<_, Error>(migration.current().is_some());
    wait_until("admitted", BOUND, admitted).await?;
    let read = async |pause: Duration| {
        let read = migration.read(async |_| {
            std::thread::sleep(pause);
            Ok::<_, Error>("value")
        });
        read.await
    };
    assert_eq!(read(Duration::from_millis(1)).await?, "value");
    assert!(matches!(read(LEASE + Duration::from_millis(100)).await, Err(Error::NotInFleet)));
    // The gate is still open, since nothing ran that could close it.
    assert!(migration.current().is_some());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_inside_a_read_shows_nothing_stale() -> Outcome {
    let steps = [(Way::Away, Step::Reading), (Way::Back, Step::Reading)];
    let faults = [Fault::Slow, Fault::Paused, Fault::Delayed, Fault::Lost];
    run_all(cases(&faults, &steps, &[false])).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_inside_a_write_causes_no_lost_write_or_stale_read() -> Outcome {
    let steps = [
        (Way::Forward, Step::InFence),
        (Way::Forward, Step::Fenced(0)),
        (Way::Forward, Step::OldWritten(1)),
        (Way::Back, Step::NewWritten(2)),
        (Way::Away, Step::Fenced(1)),
    ];
    run_all(cases(&FAULTS, &steps, &[false])).await
}
