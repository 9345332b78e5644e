//! A migration whose old side is gone, and which instances may drive one.

use std::time::Duration;

use cutover::migration::{
    BatchOptions, ColumnMigration, MigrationSpec, Phase, PhaseRange, Plan, PlanError, Task,
};
use sqlx::{Executor, PgPool};

use super::plans::{Scripted, State};
use super::{Instance, NAME, Person, full, walk_through_gates};
use cutover_testkit::Postgres;

/// Longer than several rounds of a driver at rest.
const SEVERAL_ROUNDS: Duration = Duration::from_millis(2500);

/// Walks from `off` to `contract`, and waits until the drop is recorded.
async fn finish(person: &Person) {
    for phase in Phase::ALL {
        person.wants(phase.name()).await;
        walk_through_gates(person, phase).await;
        person.settled(phase.name()).await;
    }
    person.until("select ended_at is not null from cutover.migrations").await;
}

fn with_plan(plan: impl Plan + 'static) -> Vec<MigrationSpec> {
    vec![MigrationSpec::new(NAME, PhaseRange::FULL).plan(plan)]
}

#[tokio::test]
async fn a_finished_migration_never_looks_at_the_schema_again() {
    let url = Postgres::fresh_database().await.unwrap();
    let plan = Scripted::default();
    let a = Instance::start(&url, "a", with_plan(plan.clone())).await;
    a.at(Phase::Off).await;
    let person = Person::new(&url).await;
    finish(&person).await;
    assert_eq!(plan.runs(Task::Contract), 1);
    // Something else now has the name of the old side.
    plan.set(State::new(true, false));
    let looks = plan.looks();
    tokio::time::sleep(SEVERAL_ROUNDS).await;
    assert!(plan.looks() <= looks + 1, "{} looks at the schema", plan.looks() - looks);
    assert_eq!(plan.runs(Task::Contract), 1);
    assert!(person.ask::<bool>("select driver is null and waits_for is null from cutover.migrations").await);
    // Nor does an instance that starts later.
    let later = Scripted::default();
    later.set(State::new(true, false));
    let b = Instance::start(&url, "b", with_plan(later.clone())).await;
    b.ready(true).await;
    tokio::time::sleep(SEVERAL_ROUNDS).await;
    assert_eq!((later.looks(), later.runs(Task::Contract)), (0, 0));
}

#[tokio::test]
async fn a_column_that_gets_the_old_name_later_is_not_dropped() {
    let url = Postgres::fresh_database().await.unwrap();
    let pool = PgPool::connect(&url).await.unwrap();
    pool.execute(
        "create table orders (id bigint generated always as identity primary key, old_status text); \
         insert into orders (old_status) select 'S' || g from generate_series(1, 20) g",
    )
    .await
    .unwrap();
    let plan = ColumnMigration::new(pool.clone(), "orders")
        .key("id")
        .column("old_status", "new_status", "text")
        .forward("lower(old_status)")
        .backward("upper(new_status)")
        .batches(BatchOptions::default())
        .build()
        .unwrap();
    let spec = MigrationSpec::new(NAME, PhaseRange::FULL).plan(plan.clone()).soak(Duration::ZERO);
    let a = Instance::start(&url, "a", vec![spec]).await;
    a.at(Phase::Off).await;
    let person = Person::new(&url).await;
    person.wants("retire").await;
    person.settled("retire").await;
    walk_through_gates(&person, Phase::Contract).await;
    person.wants("contract").await;
    person.until("select ended_at is not null from cutover.migrations").await;
    let has_old = "select exists (select from pg_attribute where attrelid = 'orders'::regclass \
        and attname = 'old_status' and not attisdropped)";
    assert!(!person.ask::<bool>(has_old).await);

    pool.execute("alter table orders add column old_status text").await.unwrap();
    tokio::time::sleep(SEVERAL_ROUNDS).await;
    assert!(person.ask::<bool>(has_old).await, "the driver dropped it");
    // A driver that decided on the drop before it was paused.
    plan.run(Task::Contract, &a.migration()).await.expect("nothing to do");
    assert!(person.ask::<bool>(has_old).await, "a late driver dropped it");
}

#[tokio::test]
async fn a_build_without_a_finished_migration_is_admitted() {
    let url = Postgres::fresh_database().await.unwrap();
    let a = Instance::start(&url, "a", full()).await;
    a.at(Phase::Off).await;
    let person = Person::new(&url).await;
    finish(&person).await;
    let later = Instance::start(&url, "later", vec![]).await;
    later.ready(true).await;
    // Until it is finished, such a build is refused.
    sqlx::query("update cutover.migrations set ended_at = null, ended_as = null")
        .execute(&person.0)
        .await
        .unwrap();
    a.agent.leave().await.unwrap();
    let early = Instance::start(&url, "early", vec![]).await;
    person
        .until("select coalesce(bool_and(refusal like '%does not declare it%'), false) from cutover.instances where name = 'early'")
        .await;
    early.ready(false).await;
}

#[tokio::test]
async fn an_instance_without_the_plan_does_not_drive() {
    let url = Postgres::fresh_database().await.unwrap();
    // A build with the plan ran here once.
    let first = Instance::start(&url, "first", with_plan(Scripted::default())).await;
    first.at(Phase::Off).await;
    first.agent.leave().await.unwrap();
    let bare = Instance::start(&url, "bare", full()).await;
    bare.at(Phase::Off).await;
    let person = Person::new(&url).await;
    person.wants("expand").await;
    person
        .until("select coalesce(waits_for, '') like '%deploy a build that declares the plan%' from cutover.migrations")
        .await;
    tokio::time::sleep(SEVERAL_ROUNDS).await;
    assert_eq!(person.ask::<String>("select phase from cutover.migrations").await, "off");
    let plan = Scripted::default();
    let _second = Instance::start(&url, "second", with_plan(plan.clone())).await;
    person.settled("expand").await;
    assert_eq!(plan.runs(Task::Expand), 1);
}

#[tokio::test]
async fn a_failing_task_keeps_one_steady_reason() {
    let url = Postgres::fresh_database().await.unwrap();
    let plan = Scripted::default();
    plan.fail_with(|attempt| PlanError::NotNow(format!("session {attempt} holds the table")));
    let _a = Instance::start(&url, "a", with_plan(plan.clone())).await;
    let person = Person::new(&url).await;
    person.wants("expand").await;
    person.until("select coalesce(waits_for, '') like '%holds the table%' from cutover.migrations").await;
    let since: String = person.ask("select waits_since::text from cutover.migrations").await;
    let began = tokio::time::Instant::now();
    let mut samples = 0;
    while began.elapsed() < Duration::from_secs(8) {
        assert!(
            person
                .ask::<bool>(
                    "select coalesce(waits_for, '') like '%holds the table%' from cutover.migrations"
                )
                .await,
            "sample {samples}: {:?}",
            person.ask::<Option<String>>("select waits_for from cutover.migrations").await
        );
        assert_eq!(person.ask::<String>("select waits_since::text from cutover.migrations").await, since);
        samples += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // After 0, 1, 3 and 7 s, each pause up to a fifth shorter.
    let attempts = plan.runs(Task::Expand);
    assert!((3..=5).contains(&attempts), "{attempts} attempts in 8 s");
    plan.succeed();
    person.settled("expand").await;
    person.until("select waits_for is null from cutover.migrations").await;
}

/// A person has dropped the column, or restored the schema of another time.
#[tokio::test]
async fn a_build_is_not_admitted_without_a_side_that_its_phase_uses() {
    let url = Postgres::fresh_database().await.unwrap();
    let pool = PgPool::connect(&url).await.unwrap();
    pool.execute("create table orders (id bigint primary key, old_status text)").await.unwrap();
    let specs = || {
        let plan = ColumnMigration::new(pool.clone(), "orders")
            .column("old_status", "new_status", "text")
            .forward("lower(old_status)")
            .backward("upper(new_status)")
            .without_guard_trigger()
            .build()
            .unwrap();
        vec![MigrationSpec::new(NAME, PhaseRange::FULL).plan(plan).soak(Duration::ZERO)]
    };
    let a = Instance::start(&url, "a", specs()).await;
    a.at(Phase::Off).await;
    let person = Person::new(&url).await;
    person.wants("switch").await;
    person.settled("switch").await;
    person.0.execute("alter table orders drop old_status").await.unwrap();
    let b = Instance::start(&url, "b", specs()).await;
    person
        .until(
            "select coalesce(bool_and(refusal like '%the old side does not exist%set-phase payment_status retire%'), false) \
             from cutover.instances where name = 'b'",
        )
        .await;
    b.ready(false).await;
    // What the refusal says works, while an instance that was admitted before drives.
    person.wants("retire").await;
    b.at(Phase::Retire).await;
    b.ready(true).await;
}
