//! Many instances, migrations, fleets and databases at once.

use std::time::Duration;

use cutover::fleet::{Fleet, FleetOptions};
use cutover::health::Health;
use cutover::ledger::Ledger;
use cutover::migration::admin::set_phase;
use cutover::migration::{Agent, DriverOptions, Error, Migration, MigrationSpec};
use cutover::migration::{Desired, Phase, PhaseRange};
use cutover::release::Release;
use cutover_testkit::{Postgres, wait_until};
use futures_util::future::try_join_all;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

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

/// Somebody who looks into the ledger.
async fn observer(url: &str) -> Outcome<PgPool> {
    Ok(PgPoolOptions::new().max_connections(1).connect(url).await?)
}

#[tokio::test]
async fn a_hundred_instances_agree_on_every_step_over_a_handful_of_connections() -> Outcome {
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
    let connections: i64 = sqlx::query_scalar(
        "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()",
    )
    .fetch_one(&observer)
    .await?;
    assert!(connections <= 4, "{connections} connections");
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
    // It hears of `expand` too, and no more follows while the pin is held.
    at(&first[..1], Phase::Expand).await?;
    Ok(())
}

#[tokio::test]
async fn fleets_in_one_database_and_databases_of_one_service_are_apart() -> Outcome {
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
