//! Many instances, migrations, fleets and databases at once.

use std::time::{Duration, Instant};

use cutover::fleet::{Fleet, FleetOptions};
use cutover::health::Health;
use cutover::ledger::Ledger;
use cutover::migration::admin::set_phase;
use cutover::migration::{Agent, DriverOptions, Error, Migration, MigrationSpec};
use cutover::migration::{Desired, Phase, PhaseRange};
use cutover::pool::{ConnectionShare, PoolGuard, ShareOptions};
use cutover::release::Release;
use cutover_testkit::{Postgres, PostgresOptions, wait_until};
use futures_util::future::try_join_all;
use futures_util::{StreamExt, TryStreamExt, stream};
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{Connection, PgConnection};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const LIMIT: Duration = Duration::from_secs(60);

async fn instance(ledger: &Ledger, fleet: &str, name: &str, migrations: &[&str]) -> Outcome<Agent> {
    let release = Release::new(fleet, "stable")?.with_instance(name)?;
    let health = Health::new();
    let fleet = Fleet::join(ledger.clone(), &release, FleetOptions::default(), &health).await?;
    let specs = migrations.iter().map(|name| MigrationSpec::new(*name, PhaseRange::FULL)).collect();
    Ok(Agent::start(fleet, specs, DriverOptions::default(), &health).await?)
}

fn named(agent: &Agent, name: &str) -> Outcome<Migration> {
    Ok(agent.migration(name).ok_or("declared")?)
}

async fn at(migrations: &[Migration], phase: Phase) -> Outcome {
    let all = async || Ok::<_, Error>(migrations.iter().all(|m| m.current().is_some_and(|at| at.1 == phase)));
    Ok(wait_until(&format!("all in {phase}"), LIMIT, all).await?)
}

async fn wants(ledger: &Ledger, migration: &str, phase: Phase) -> Outcome {
    Ok(set_phase(ledger, migration, Desired::from(phase), "test").await?)
}

/// A person who reads the ledger.
async fn observer(url: &str) -> Outcome<PgPool> {
    Ok(PgPoolOptions::new().max_connections(1).connect(url).await?)
}

#[tokio::test]
async fn a_hundred_instances_agree_over_a_handful_of_connections() -> Outcome {
    const COUNT: usize = 100;
    let url = Postgres::fresh_database().await?;
    let ledger = Ledger::open(url.parse()?).await?;
    let names: Vec<String> = (0..COUNT).map(|number| format!("i{number}")).collect();
    let agents = try_join_all(names.iter().map(|name| instance(&ledger, "crowd", name, &["m"]))).await?;
    let migrations: Vec<_> = agents.iter().map(|agent| named(agent, "m")).collect::<Outcome<_>>()?;
    at(&migrations, Phase::Off).await?;
    // One operation of one instance is enough to hold all of them up.
    let pin = migrations[COUNT / 2].pin()?;
    wants(&ledger, "m", Phase::Backfill).await?;
    at(&migrations, Phase::Expand).await?;
    let observer = observer(&url).await?;
    let acknowledged = async || {
        sqlx::query_scalar::<_, i64>("select count(*) from cutover.acknowledgements where epoch = 2")
            .fetch_one(&observer)
            .await
    };
    let others = async || Ok::<_, sqlx::Error>(acknowledged().await? == COUNT as i64 - 1);
    wait_until("all others acknowledge", LIMIT, others).await?;
    assert_eq!(migrations[0].current().ok_or("in the fleet")?.1, Phase::Expand);
    drop(pin);
    at(&migrations, Phase::Backfill).await?;
    // A connection that was replaced may still be ending.
    let few = "select count(*) <= 4 from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()";
    let few = async || sqlx::query_scalar::<_, bool>(few).fetch_one(&observer).await;
    wait_until("at most four connections", LIMIT, few).await?;
    Ok(())
}

#[tokio::test]
async fn migrations_of_one_service_move_independently() -> Outcome {
    let ledger = Ledger::open(Postgres::fresh_database().await?.parse()?).await?;
    let names = ["first", "second", "third", "fourth"];
    let agents = try_join_all(["a", "b"].map(|name| instance(&ledger, "service", name, &names))).await?;
    let of = |name: &str| agents.iter().map(|agent| named(agent, name)).collect::<Outcome<Vec<_>>>();
    for name in names {
        at(&of(name)?, Phase::Off).await?;
    }
    // One that can't go on does not hold the others up.
    let first = of("first")?;
    let _pin = first[0].pin()?;
    for name in names {
        wants(&ledger, name, Phase::Backfill).await?;
    }
    for name in &names[1..] {
        at(&of(name)?, Phase::Backfill).await?;
    }
    // It adopts `expand` too, and no further epoch opens while the pin is held.
    at(&first[..1], Phase::Expand).await?;
    Ok(())
}

#[tokio::test]
async fn fleets_and_databases_of_one_service_are_independent() -> Outcome {
    let (here, there) = (Postgres::fresh_database().await?, Postgres::fresh_database().await?);
    let (first, second) = (Ledger::open(here.parse()?).await?, Ledger::open(there.parse()?).await?);
    // The same name everywhere: two services in one database, and one of them in another database too.
    let orders = instance(&first, "orders", "a", &["m"]).await?;
    let invoices = instance(&first, "invoices", "a", &["m"]).await?;
    let archive = instance(&second, "orders", "a", &["m"]).await?;
    let [orders, invoices, archive] = [named(&orders, "m")?, named(&invoices, "m")?, named(&archive, "m")?];
    let all = [orders, invoices.clone(), archive.clone()];
    at(&all, Phase::Off).await?;
    // An operation of another fleet, or of another database, is not waited for.
    let _pins = (invoices.pin()?, archive.pin()?);
    wants(&first, "orders/m", Phase::Backfill).await?;
    at(&all[..1], Phase::Backfill).await?;
    assert_eq!(invoices.current().ok_or("in the fleet")?.1, Phase::Off);
    assert_eq!(archive.current().ok_or("in the fleet")?.1, Phase::Off);
    wants(&second, "m", Phase::Expand).await?;
    at(&all[2..], Phase::Expand).await?;
    assert_eq!(invoices.current().ok_or("in the fleet")?.1, Phase::Off);
    Ok(())
}

/// An instance with a pool that opens no connection by itself, so that a thousand of them fit on one machine.
struct Pooled {
    fleet: Fleet,
    guard: PoolGuard,
    _health: Health,
}

async fn pooled(ledger: &Ledger, name: &str) -> Outcome<Pooled> {
    let health = Health::new();
    let release = Release::new("shop", "1")?.with_instance(name)?;
    let fleet = Fleet::join(ledger.clone(), &release, FleetOptions::default(), &health).await?;
    let options = ShareOptions { max_connections: 20, start_within: LIMIT, ..ShareOptions::default() };
    let share = ConnectionShare::lease(&fleet, &options).await?;
    let (_, guard) = share.deadpool(tokio_postgres::Config::new(), tokio_postgres::NoTls)?;
    Ok(Pooled { fleet, guard, _health: health })
}

/// CPU seconds of a server and of its sessions, of those that have ended too.
fn cpu_seconds(server: u32) -> Outcome<f64> {
    let mut ticks = 0;
    for entry in std::fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else { continue };
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let fields: Vec<u64> = stat
            .rsplit_once(')')
            .map(|(_, rest)| rest)
            .unwrap_or_default()
            .split_whitespace()
            .skip(1)
            .map(|field| field.parse().unwrap_or(0))
            .collect();
        let own = fields.get(10).unwrap_or(&0) + fields.get(11).unwrap_or(&0);
        if pid == server {
            ticks += own + fields.get(12).unwrap_or(&0) + fields.get(13).unwrap_or(&0);
        } else if fields.first() == Some(&u64::from(server)) {
            ticks += own;
        }
    }
    Ok(ticks as f64 / 100.0)
}

/// What a server has done so far.
struct Work {
    at: Instant,
    cpu_seconds: f64,
    commits: i64,
}

impl Work {
    async fn of(server: u32, observer: &mut PgConnection) -> Outcome<Self> {
        let commits = sqlx::query_scalar("select sum(xact_commit)::bigint from pg_stat_database")
            .fetch_one(observer)
            .await?;
        Ok(Self { at: Instant::now(), cpu_seconds: cpu_seconds(server)?, commits })
    }

    /// What was done since the last look, for people.
    async fn since(&mut self, server: u32, observer: &mut PgConnection) -> Outcome<String> {
        let before = std::mem::replace(self, Self::of(server, observer).await?);
        let (seconds, commits) = ((self.at - before.at).as_secs_f64(), self.commits - before.commits);
        let cpu = self.cpu_seconds - before.cpu_seconds;
        Ok(format!(
            "{commits} transactions, {:.0} a second; {cpu:.1} s of CPU of Postgres, {:.1} % of a core",
            commits as f64 / seconds,
            cpu / seconds * 100.0
        ))
    }
}

/// `TESTKIT_INSTANCES=1000` measures as many; the figures are printed.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: run it alone, with --ignored --nocapture"]
async fn a_large_fleet_shares_the_server_s_connections() -> Outcome {
    let count =
        std::env::var("TESTKIT_INSTANCES").ok().and_then(|count| count.parse().ok()).unwrap_or(100_usize);
    // Five connections beside each pool, and six for each of the pools.
    let connections = count * 11 + 50;
    let settings = vec![("max_connections".to_owned(), connections.to_string())];
    let postgres = Postgres::start(PostgresOptions { settings, ..PostgresOptions::default() }).await?;
    let server = postgres.process().pid();
    let url: sqlx::postgres::PgConnectOptions = postgres.admin_url().parse()?;
    // A process of its own for each instance does not fit on one machine. Eight instances share four connections.
    let ledgers = try_join_all((0..count.div_ceil(8)).map(|_| Ledger::open(url.clone()))).await?;

    let mut observer = PgConnection::connect_with(&url).await?;
    let (mut work, began) = (Work::of(server, &mut observer).await?, Instant::now());
    let names: Vec<String> = (0..count).map(|number| format!("pod-{number}")).collect();
    let starts = names.iter().enumerate().map(|(at, name)| pooled(&ledgers[at % ledgers.len()], name));
    // As many at a time as the few connections of this process can carry.
    let mut pods: Vec<_> = stream::iter(starts).buffered(128).try_collect().await?;
    let started = began.elapsed();
    let all_have =
        |pods: &[Pooled], least: u32| pods.iter().all(|pod| *pod.guard.granted().borrow() >= least);
    wait_until("an even division", LIMIT, async || Ok::<_, Error>(all_have(&pods, 5))).await?;
    let divided = began.elapsed();
    let of_start = work.since(server, &mut observer).await?;

    tokio::time::sleep(Duration::from_secs(8)).await;
    let at_rest = work.since(server, &mut observer).await?;

    let left = pods.split_off(count / 2);
    let leaving = Instant::now();
    futures_util::future::join_all(left.into_iter().map(async |pod| {
        pod.guard.leave().await;
        pod.fleet.leave().await
    }))
    .await;
    let gone = leaving.elapsed();
    wait_until("the connections of those that left", LIMIT, async || Ok::<_, Error>(all_have(&pods, 15)))
        .await?;
    let rebalanced = leaving.elapsed();
    let of_rebalance = work.since(server, &mut observer).await?;
    println!(
        "{count} instances: started after {started:.1?}, all with 5 connections after {divided:.1?} ({of_start}); at rest \
         {at_rest}; half of them left within {gone:.1?}, their connections were divided after {rebalanced:.1?} ({of_rebalance})"
    );
    assert!(started < LIMIT, "{started:?}");
    Ok(())
}
