//! Epochs, the fence, leases and the driver on a real Postgres.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed set-up is a failed test")]

mod deploys;
mod desired;
mod finished;
mod lives;
mod neighbours;
mod plans;
mod retention;

use std::time::Duration;

use cutover::fleet::{Fleet, FleetOptions};
use cutover::health::Health;
use cutover::ledger::Ledger;
use cutover::migration::{Agent, DriverOptions, Error, Isolation, Migration, MigrationSpec};
use cutover::migration::{Phase, PhaseRange};
use cutover::release::Release;
use cutover_testkit::{Postgres, PostgresOptions, wait_until};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, PgConnection, PgPool};

const NAME: &str = "payment_status";
const LIMIT: Duration = Duration::from_secs(60);

/// One instance of a service, in this process.
struct Instance {
    agent: Agent,
    fleet: Fleet,
    health: Health,
}

impl Instance {
    async fn start(url: &str, name: &str, specs: Vec<MigrationSpec>) -> Self {
        Self::with(url, name, specs, FleetOptions::default(), DriverOptions::default()).await
    }

    async fn with(
        url: &str,
        name: &str,
        specs: Vec<MigrationSpec>,
        options: FleetOptions,
        driver: DriverOptions,
    ) -> Self {
        let release = Release::new("payments", "stable").unwrap().with_instance(name).unwrap();
        let health = Health::new();
        let ledger = Ledger::open(url.parse().unwrap()).await.expect("the ledger opens");
        let fleet = Fleet::join(ledger, &release, options, &health).await.expect("joins");
        let agent = Agent::start(fleet.clone(), specs, driver, &health).await.expect("starts");
        Self { agent, fleet, health }
    }

    fn migration(&self) -> Migration {
        self.agent.migration(NAME).expect("declared")
    }

    async fn at(&self, phase: Phase) {
        let migration = self.migration();
        let what = format!("an instance is in {phase}");
        wait_until(&what, LIMIT, async || {
            Ok::<_, Error>(migration.current().is_some_and(|at| at.1 == phase))
        })
        .await
        .unwrap();
    }

    async fn ready(&self, ready: bool) {
        let what = format!("readiness {ready}");
        wait_until(&what, LIMIT, async || Ok::<_, Error>(self.health.is_ready() == ready)).await.unwrap();
    }
}

fn full() -> Vec<MigrationSpec> {
    vec![MigrationSpec::new(NAME, PhaseRange::FULL)]
}

fn range(lowest: Phase, highest: Phase) -> Vec<MigrationSpec> {
    vec![MigrationSpec::new(NAME, PhaseRange::new(lowest..=highest).unwrap())]
}

/// A person at a prompt.
struct Person(PgPool);

impl Person {
    async fn new(url: &str) -> Self {
        Self(PgPoolOptions::new().max_connections(1).connect(url).await.unwrap())
    }

    async fn wants(&self, phase: &str) {
        sqlx::query("update cutover.migrations set desired = $1").bind(phase).execute(&self.0).await.unwrap();
    }

    async fn ask<T>(&self, query: &'static str) -> T
    where
        T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        sqlx::query_scalar(query).fetch_one(&self.0).await.unwrap()
    }

    async fn until(&self, query: &'static str) {
        wait_until(query, LIMIT, async || sqlx::query_scalar::<_, bool>(query).fetch_one(&self.0).await)
            .await
            .unwrap();
    }

    async fn settled(&self, phase: &'static str) {
        let what = format!("{phase} is in use alone");
        wait_until(&what, LIMIT, async || {
            sqlx::query_scalar::<_, bool>(
                "select m.phase = $1 and not exists (select 1 from cutover.epochs e \
                 where e.migration_id = m.id and e.epoch < m.epoch and e.drained_at is null) \
                 from cutover.migrations m",
            )
            .bind(phase)
            .fetch_one(&self.0)
            .await
        })
        .await
        .unwrap();
    }
}

#[tokio::test]
async fn the_fleet_walks_to_the_desired_phase_and_back() {
    let url = Postgres::fresh_database().await.unwrap();
    let (a, b) = tokio::join!(Instance::start(&url, "a", full()), Instance::start(&url, "b", full()));
    let person = Person::new(&url).await;
    person.wants("backfill").await;
    for instance in [&a, &b] {
        instance.at(Phase::Backfill).await;
        instance.ready(true).await;
    }
    person.settled("backfill").await;
    assert_eq!(person.ask::<i32>("select epoch from cutover.migrations").await, 3);
    // The next phase needs the data.
    person.wants("verify").await;
    person
        .until("select coalesce(waits_for, '') like '%backfill to complete%' from cutover.migrations")
        .await;
    person.wants("off").await;
    person.settled("off").await;
    let moves: String = person.ask("select string_agg(event, ', ' order by id) from cutover.history").await;
    assert_eq!(moves, "off to expand, expand to backfill, backfill to expand, expand to off");
    person.wants("sideways").await;
    person
        .until("select coalesce(waits_for, '') like '%\"sideways\" is not a phase%' from cutover.migrations")
        .await;
}

#[tokio::test]
async fn an_operation_at_the_old_epoch_delays_the_next_move() {
    let url = Postgres::fresh_database().await.unwrap();
    let (a, b) = tokio::join!(Instance::start(&url, "a", full()), Instance::start(&url, "b", full()));
    a.at(Phase::Off).await;
    b.at(Phase::Off).await;
    let person = Person::new(&url).await;
    let slow = b.migration();
    let pin = slow.pin().unwrap();
    person.wants("backfill").await;
    a.at(Phase::Expand).await;
    b.at(Phase::Expand).await;
    person
        .until("select coalesce(waits_for, '') like '%instance b with 1 operation%' from cutover.migrations")
        .await;
    assert_eq!(person.ask::<i64>("select count(*) from cutover.epochs where closed_at is not null").await, 0);
    assert_eq!((pin.phase(), pin.holds()), (Phase::Off, true));
    drop(pin);
    person.settled("backfill").await;
}

#[tokio::test]
async fn an_acknowledgement_lost_in_a_failover_is_given_again() {
    let url = Postgres::fresh_database().await.unwrap();
    let a = Instance::start(&url, "a", full()).await;
    let person = Person::new(&url).await;
    person.wants("expand").await;
    a.at(Phase::Expand).await;
    person.settled("expand").await;
    // As the standby had it: epoch 2 is open, and no instance has acknowledged it.
    for lost in [
        "update cutover.epochs set closed_at = null, drained_at = null where epoch = 1",
        "update cutover.acknowledgements set epoch = 1",
    ] {
        sqlx::query(lost).execute(&person.0).await.unwrap();
    }
    person.settled("expand").await;
    assert_eq!(person.ask::<i32>("select epoch from cutover.acknowledgements").await, 2);
}

#[tokio::test]
async fn a_refused_write_leaves_the_connection_clean() {
    let url = Postgres::fresh_database().await.unwrap();
    let a = Instance::start(&url, "a", full()).await;
    a.at(Phase::Off).await;
    let person = Person::new(&url).await;
    person.wants("expand").await;
    person.settled("expand").await;
    let pool = PgPoolOptions::new().max_connections(1).connect(&url).await.unwrap();
    // What a process that has been paused since epoch 1 would send.
    for isolation in ["read committed", "repeatable read", "serializable"] {
        let stale = sqlx::AssertSqlSafe(format!(
            "set transaction isolation level {isolation}; select cutover.fence(1, 1, 'off'); begin"
        ));
        let error = pool.begin_with(stale).await.expect_err("refused");
        assert_eq!(error.as_database_error().unwrap().code().unwrap(), "ZC001", "{isolation}");
    }
    let unknown = pool.begin_with("select cutover.fence(1, 2, 'ramp'); begin").await.expect_err("refused");
    assert_eq!(unknown.as_database_error().unwrap().code().unwrap(), "ZC002");
    // The pool's only connection is not inside a failed transaction.
    let mut tx = a.migration().begin(&pool).await.unwrap();
    assert_eq!(tx.phase(), Phase::Expand);
    sqlx::query("create table written (x int)").execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    for (isolation, name) in
        [(Isolation::RepeatableRead, "repeatable read"), (Isolation::Serializable, "serializable")]
    {
        let mut tx = a.migration().begin_isolated(&pool, isolation).await.unwrap();
        let level: String =
            sqlx::query_scalar("show transaction_isolation").fetch_one(&mut *tx).await.unwrap();
        assert_eq!(level, name);
        // Dropped: rolled back.
        sqlx::query("insert into written values (1)").execute(&mut *tx).await.unwrap();
        drop(tx);
        let count: i64 = sqlx::query_scalar("select count(*) from written").fetch_one(&pool).await.unwrap();
        assert_eq!(count, 0);
    }
}

#[tokio::test]
async fn a_snapshot_from_before_the_close_cannot_pass_the_fence() {
    let url = Postgres::fresh_database().await.unwrap();
    let a = Instance::start(&url, "a", full()).await;
    a.at(Phase::Off).await;
    let person = Person::new(&url).await;
    for isolation in ["repeatable read", "serializable"] {
        let from = a.migration().current().unwrap();
        let to = if from.1 == Phase::Off { "expand" } else { "off" };
        let mut paused = PgConnection::connect(&url).await.unwrap();
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("begin isolation level {isolation}; select 1")))
            .execute(&mut paused)
            .await
            .unwrap();
        person.wants(to).await;
        person.settled(if from.1 == Phase::Off { "expand" } else { "off" }).await;
        let error = sqlx::query("select cutover.fence(1, $1, $2)")
            .bind(from.0)
            .bind(from.1.name())
            .execute(&mut paused)
            .await
            .expect_err("refused");
        let code = error.as_database_error().unwrap().code().unwrap().into_owned();
        assert!(code == "40001" || code == "ZC001", "{isolation}: {code}");
    }
}

#[tokio::test]
async fn a_transaction_of_a_dead_process_is_terminated() {
    let url = Postgres::fresh_database().await.unwrap();
    let driver = DriverOptions { transaction_limit: Duration::from_secs(2), ..DriverOptions::default() };
    let a = Instance::with(&url, "a", full(), FleetOptions::default(), driver).await;
    a.at(Phase::Off).await;
    let person = Person::new(&url).await;
    let mut dead = PgConnection::connect(&format!("{url}?application_name=gone")).await.unwrap();
    sqlx::raw_sql("begin; select cutover.fence(1, 1, 'off')").execute(&mut dead).await.unwrap();
    person.wants("backfill").await;
    person.until("select coalesce(waits_for, '') like '%, gone)%' from cutover.migrations").await;
    assert_eq!(person.ask::<i32>("select epoch from cutover.migrations").await, 2);
    person.settled("backfill").await;
    sqlx::query("select 1").execute(&mut dead).await.expect_err("ended");
}

#[tokio::test]
async fn a_transaction_of_the_current_epoch_is_not_terminated() {
    let url = Postgres::fresh_database().await.unwrap();
    let driver = DriverOptions { transaction_limit: Duration::from_secs(2), ..DriverOptions::default() };
    let a = Instance::with(&url, "a", full(), FleetOptions::default(), driver).await;
    a.at(Phase::Off).await;
    let person = Person::new(&url).await;
    person.wants("backfill").await;
    person.settled("backfill").await;
    walk_through_gates(&person, Phase::Verify).await;
    person.wants("verify").await;
    person.settled("verify").await;
    walk_through_gates(&person, Phase::Ramp).await;
    let (epoch, phase) = a.migration().current().unwrap();
    let fence = format!(
        "set idle_in_transaction_session_timeout = '1min'; begin; select cutover.fence(1, {epoch}, '{phase}')"
    );
    // One holds the epoch's lock only. The other has left a row to be repaired, so the move has to wait for it.
    let mut harmless = PgConnection::connect(&format!("{url}?application_name=harmless")).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(fence.clone())).execute(&mut harmless).await.unwrap();
    let mut blocking = PgConnection::connect(&format!("{url}?application_name=blocking")).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(fence)).execute(&mut blocking).await.unwrap();
    let recorded: bool = sqlx::query_scalar("select cutover.record_repairs(1, $1, 'new', '[1]', 'refused')")
        .bind(epoch)
        .fetch_one(&mut blocking)
        .await
        .unwrap();
    assert!(recorded);
    tokio::time::sleep(Duration::from_secs(3)).await;
    person.wants("ramp").await;
    person.until("select coalesce(waits_for, '') like '%, blocking)%' from cutover.migrations").await;
    assert!(
        !person.ask::<bool>("select coalesce(waits_for, '') like '%harmless%' from cutover.migrations").await
    );
    // Several more reconcile steps, all of them after the time limit.
    tokio::time::sleep(Duration::from_secs(3)).await;
    for session in [&mut harmless, &mut blocking] {
        sqlx::raw_sql("rollback").execute(session).await.expect("not terminated");
    }
    person.settled("ramp").await;
}

#[tokio::test]
async fn a_build_without_the_migration_keeps_it_in_off() {
    let url = Postgres::fresh_database().await.unwrap();
    let old = Instance::start(&url, "old", vec![]).await;
    old.ready(true).await;
    let new = Instance::start(&url, "new", full()).await;
    new.ready(true).await;
    let person = Person::new(&url).await;
    person.wants("expand").await;
    person
        .until("select coalesce(waits_for, '') like '%instance old to stop: its build does not declare%' from cutover.migrations")
        .await;
    assert_eq!(person.ask::<String>("select phase from cutover.migrations").await, "off");
    old.agent.leave().await.unwrap();
    person.settled("expand").await;
    // A rollback to the old build: it stays unready, and no move waits for it.
    let back = Instance::start(&url, "back", vec![]).await;
    person.until("select exists (select 1 from cutover.instances where name = 'back' and refusal like '%does not declare it%')").await;
    back.ready(false).await;
    person.wants("off").await;
    person.settled("off").await;
    back.ready(true).await;
}

#[tokio::test]
async fn the_guard_admits_a_build_only_in_its_range() {
    let url = Postgres::fresh_database().await.unwrap();
    let a = Instance::start(&url, "a", full()).await;
    a.ready(true).await;
    let person = Person::new(&url).await;
    for phase in Phase::ALL {
        // Meet every requirement: complete, scanned, approved and soaked.
        person.wants(phase.name()).await;
        walk_through_gates(&person, phase).await;
        person.settled(phase.name()).await;
        for (lowest, highest) in
            Phase::ALL.into_iter().flat_map(|l| Phase::ALL.into_iter().map(move |h| (l, h)))
        {
            if lowest > highest {
                continue;
            }
            let build = Instance::start(&url, "build", range(lowest, highest)).await;
            let fits = lowest <= phase && phase <= highest;
            person
                .until("select coalesce(bool_and(admitted or refusal is not null), false) from cutover.instances where name = 'build'")
                .await;
            let admitted: bool =
                person.ask("select admitted from cutover.instances where name = 'build'").await;
            assert_eq!(admitted, fits, "{lowest}..={highest} in {phase}");
            build.ready(fits).await;
            build.agent.leave().await.unwrap();
        }
    }
}

async fn walk_through_gates(person: &Person, phase: Phase) {
    if phase == Phase::Verify {
        sqlx::query("update cutover.migrations set new_complete = true").execute(&person.0).await.unwrap();
    }
    if phase == Phase::Ramp {
        sqlx::query(
            "insert into cutover.jobs (migration_id, kind, epoch, finished_at) values (1, 'scan', 1, clock_timestamp())",
        )
        .execute(&person.0)
        .await
        .unwrap();
    }
    if phase == Phase::Contract {
        sqlx::query(
            "insert into cutover.approvals (migration_id, phase, actor) values (1, 'contract', 'me')",
        )
        .execute(&person.0)
        .await
        .unwrap();
        sqlx::query("update cutover.epochs set opened_at = opened_at - interval '2 days'")
            .execute(&person.0)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_cut_off_instance_refuses_reads_and_rejoins() {
    let postgres = Postgres::start(PostgresOptions::default()).await.unwrap();
    let url = postgres.create_database("cut").await.unwrap();
    let options = FleetOptions {
        lease: Duration::from_millis(1500),
        renew_every: Duration::from_millis(500),
        ..FleetOptions::default()
    };
    let a = Instance::with(&url, "a", full(), options, DriverOptions::default()).await;
    a.ready(true).await;
    Person::new(&url).await.wants("expand").await;
    a.at(Phase::Expand).await;
    let migration = a.migration();
    let pin = migration.pin().unwrap();
    postgres.pause().unwrap();
    a.ready(false).await;
    assert!(!pin.holds());
    assert!(matches!(migration.pin(), Err(Error::NotInFleet)));
    let read = migration.read(async |_| Ok::<_, Error>(1));
    assert!(matches!(read.await, Err(Error::NotInFleet)));
    postgres.resume().unwrap();
    a.ready(true).await;
    assert!(migration.pin().unwrap().holds());
    assert!(a.fleet.lease().holds());
}
