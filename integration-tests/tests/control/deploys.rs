//! The table of deploys in the documentation, walked through.

use std::time::Duration;

use cutover::ledger::Ledger;
use cutover::migration::admin::{approve, incompatible_builds};
use cutover::migration::{ColumnMigration, MigrationSpec, Phase, PhaseRange};
use sqlx::{Executor, PgPool};

use super::{Instance, NAME, Person};
use cutover_testkit::Postgres;

const CHAPTER: &str = include_str!("../../../docs/deploys.md");

/// The rows of the table: the state, and whether each of the three builds is admitted.
fn table() -> Vec<(&'static str, [bool; 3])> {
    let rows = CHAPTER.lines().skip_while(|line| !line.starts_with("| state of the migration |")).skip(2);
    rows.take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            (cells[0], [1, 2, 3].map(|column| cells[column].starts_with("admitted")))
        })
        .collect()
}

fn plan(pool: &PgPool) -> ColumnMigration {
    ColumnMigration::new(pool.clone(), "orders")
        .column("old_status", "new_status", "text")
        .forward("lower(old_status)")
        .backward("upper(new_status)")
        .build()
        .unwrap()
}

fn spec(pool: &PgPool, range: PhaseRange) -> MigrationSpec {
    MigrationSpec::new(NAME, range).plan(plan(pool)).soak(Duration::ZERO)
}

/// Checks the row of this state against what a new instance of each build would be told.
async fn check(url: &str, pool: &PgPool, state: &str) {
    let (_, admitted) = table().into_iter().find(|(name, _)| *name == state).expect("a row of the table");
    let builds =
        [vec![], vec![spec(pool, PhaseRange::FULL)], vec![spec(pool, PhaseRange::from_phase(Phase::Retire))]];
    let ledger = Ledger::open(url.parse().unwrap()).await.unwrap();
    for ((build, specs), admitted) in ["1", "2", "3"].iter().zip(builds).zip(admitted) {
        let problems = incompatible_builds(&ledger, "payments", &specs).await.unwrap();
        assert_eq!(problems.is_empty(), admitted, "build {build}, {state}: {problems:?}");
    }
}

#[tokio::test]
async fn the_table_of_deploys_matches_the_library() {
    let url = Postgres::fresh_database().await.unwrap();
    let pool = PgPool::connect(&url).await.unwrap();
    pool.execute(
        "create table orders (id bigint primary key, old_status text); insert into orders values (1, 'A')",
    )
    .await
    .unwrap();
    check(&url, &pool, "a fresh database with the old side").await;
    let _a = Instance::start(&url, "a", vec![spec(&pool, PhaseRange::FULL)]).await;
    let person = Person::new(&url).await;
    let ledger = Ledger::open(url.parse().unwrap()).await.unwrap();
    for phase in Phase::ALL {
        if phase == Phase::Contract {
            approve(&ledger, NAME, "me").await.unwrap();
        }
        person.wants(phase.name()).await;
        if phase == Phase::Contract {
            person.until("select ended_as is not null from cutover.migrations").await;
            check(&url, &pool, "finished").await;
        } else {
            person.settled(phase.name()).await;
            check(&url, &pool, &format!("`{phase}`")).await;
        }
    }
    assert_eq!(table().len(), 10);

    let url = Postgres::fresh_database().await.unwrap();
    let pool = PgPool::connect(&url).await.unwrap();
    pool.execute("create table orders (id bigint primary key, new_status text)").await.unwrap();
    check(&url, &pool, "a fresh database with the new side only").await;
    // It is what happens, too.
    let new_only = vec![spec(&pool, PhaseRange::from_phase(Phase::Retire))];
    let b = Instance::start(&url, "b", new_only).await;
    b.at(Phase::Contract).await;
    check(&url, &pool, "finished").await;
}
