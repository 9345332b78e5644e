//! Changes of the schema besides the two sides: indexes, constraints and statements of the user.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cutover::migration::{ColumnMigration, TableMigration};
use cutover::migration::{Plan, Task};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, PgPool, Row};
use tokio::time::{sleep, timeout};

use crate::world::{Fleet, Outcome, PACE, World};

/// No statement takes as long, even on a busy machine, unless it waits for a test.
const SLOW: Duration = Duration::from_secs(15);

async fn is(world: &World, query: &str) -> Outcome<bool> {
    Ok(sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&world.pool).await?)
}

const VALID: &str =
    "select exists (select from pg_index where indexrelid = to_regclass('by_status') and indisvalid)";
/// A concurrent build waits for it: under READ COMMITTED an idle reader has no snapshot.
const SNAPSHOT: &str = "begin isolation level repeatable read";
const NOT_NULL: &str =
    "select attnotnull from pg_attribute where attrelid = 'orders'::regclass and attname = 'new_status'";

#[tokio::test]
async fn indexes_constraints_and_statements_come_in_their_phase() -> Outcome {
    let world = World::new(1_000).await?;
    world.pool.execute("create view old_orders as select id, old_status from orders").await?;
    let plan = world
        .describe()
        .expand_sql("comment on table orders is 'moving'")
        .index("by_status", "(new_status) where new_status <> 'void'")
        .not_null()
        .contract_sql("drop view old_orders;")
        .build()?;
    let _a = world.instance("a", Some(plan)).await?;
    world.go("expand").await?;
    assert!(is(&world, "select obj_description('orders'::regclass) = 'moving'").await?);
    world.go("backfill").await?;
    // An invalid index, as a killed build leaves it.
    world.pool.execute("create index by_status on orders (note)").await?;
    world
        .pool
        .execute("update pg_index set indisvalid = false where indexrelid = 'by_status'::regclass")
        .await?;
    world.go("ramp:50").await?;
    assert!(is(&world, VALID).await?);
    assert!(is(&world, "select pg_get_indexdef('by_status'::regclass) like '%(new_status)%<>%'").await?);
    world.go("retire").await?;
    assert!(!is(&world, NOT_NULL).await?, "a writer may still leave the column out");
    world.pool.execute("update orders set new_status = null where id = 7").await?;
    world.approve().await?;
    world.go("contract").await?;
    world.waits_for("cannot become NOT NULL while some row holds a null").await?;
    assert!(world.has_column("old_status").await);
    world.pool.execute("update orders set note = 'changed' where id = 7").await?;
    world.pool.execute("update orders set new_status = 'void' where id = 7").await?;
    world.until("the old column to go", async || !world.has_column("old_status").await).await?;
    assert!(is(&world, NOT_NULL).await?);
    assert!(is(&world, "select not exists (select from pg_constraint where conname like 'cutover%')").await?);
    assert!(is(&world, "select to_regclass('old_orders') is null").await?);
    Ok(())
}

#[tokio::test]
async fn duplicates_hold_a_unique_index_until_they_are_gone() -> Outcome {
    let world = World::new(100).await?;
    let plan = world.describe().unique_index("by_status", "(new_status)").build()?;
    let _a = world.instance("a", Some(plan)).await?;
    world.go("backfill").await?;
    world.pool.execute("update orders set old_status = 'SAME' where id in (1, 2)").await?;
    world.ask("ramp:50").await?;
    world.waits_for("could not create unique index").await?;
    world.pool.execute("update orders set old_status = 'OTHER' where id = 2").await?;
    world.go("ramp:50").await?;
    assert!(is(&world, VALID).await?);
    Ok(())
}

#[tokio::test]
async fn build_refuses_statements_that_cannot_run() -> Outcome {
    let world = World::new(1).await?;
    let error = world
        .describe()
        .expand_sql("create index concurrently by_status on orders (note)")
        .index("by status", "new_status")
        .build()
        .expect_err("refused")
        .to_string();
    for part in ["describe indexes with `.index(…)`", "index:", "write what follows the table"] {
        assert!(error.contains(part), "{part} is not in {error}");
    }
    let error = world.describe().expand_sql("alter table orders rename column note to remark").build();
    let error = error.expect_err("refused").to_string();
    assert!(error.contains("renaming-column") && error.contains(".allow("), "{error}");
    Ok(())
}

/// A prepared `select *` fails when a column is added; one that names its columns goes on.
#[tokio::test]
async fn prepared_statements_survive_if_they_name_columns() -> Outcome {
    let world = World::new(100).await?;
    let a = world.instance("a", Some(world.plan()?)).await?;
    // One connection, so that the prepared statement is reused.
    let pool = PgPoolOptions::new().max_connections(1).connect(&world.url).await?;
    // And several busy ones.
    let (busy, is_over) = (connected(&world, 4).await?, Arc::new(AtomicBool::new(false)));
    let load: Vec<_> =
        (2..6).map(|id| tokio::spawn(work(a.migration.clone(), busy.clone(), id, is_over.clone()))).collect();
    let named = "select id, note from orders where id = $1";
    let all = "select * from orders where id = $1";
    let update = "update orders set note = $2 where id = $1";
    let mut refused = Vec::new();
    for phase in ["off", "expand", "backfill", "verify", "ramp:50", "switch", "retire", "contract"] {
        if phase == "contract" {
            world.approve().await?;
        }
        world.go(phase).await?;
        if phase == "contract" {
            world.until("the old column to go", async || !world.has_column("old_status").await).await?;
        }
        // In a transaction and outside, because in one a refusal spoils it.
        let mut tx = a.migration.begin(&pool).await?;
        sqlx::query(update).bind(1_i64).bind(phase).execute(&mut *tx).await?;
        tx.commit().await?;
        let row = sqlx::query(named).bind(1_i64).fetch_one(&pool).await?;
        assert_eq!(row.try_get::<String, _>("note")?, phase);
        if let Err(error) = sqlx::query(all).bind(1_i64).fetch_one(&pool).await {
            assert_eq!(error.as_database_error().and_then(|error| error.code()).as_deref(), Some("0A000"));
            refused.push(phase);
        }
    }
    assert!(refused.contains(&"expand"), "a column more: {refused:?}");
    is_over.store(true, Ordering::SeqCst);
    for one in load {
        let rounds = one.await??;
        assert!(rounds > 15, "{rounds} rounds are no load");
    }
    Ok(())
}

async fn connected(world: &World, connections: u32) -> Outcome<PgPool> {
    Ok(PgPoolOptions::new().max_connections(connections).connect(&world.url).await?)
}

/// Writes and reads a row until told to stop, with prepared statements.
async fn work(
    migration: cutover::migration::Migration,
    pool: PgPool,
    id: i64,
    is_over: Arc<AtomicBool>,
) -> Outcome<i32> {
    let mut rounds = 0;
    while !is_over.load(Ordering::SeqCst) {
        rounds += 1;
        let mut tx = migration.begin(&pool).await?;
        let update = sqlx::query("update orders set note = $2 where id = $1");
        update.bind(id).bind(rounds.to_string()).execute(&mut *tx).await?;
        tx.commit().await?;
        let read = sqlx::query_scalar("select note from orders where id = $1");
        let note: String = read.bind(id).fetch_one(&pool).await?;
        assert_eq!(note, rounds.to_string());
        sleep(PACE).await;
    }
    Ok(rounds)
}

/// One update by the service; how long it took.
async fn write(a: &Fleet, pool: &PgPool) -> Outcome<Duration> {
    let began = Instant::now();
    let mut tx = a.migration.begin(pool).await?;
    tx.execute("update orders set note = 'written' where id = 3").await?;
    tx.commit().await?;
    Ok(began.elapsed())
}

/// The role has limits for requests, each of which would end a build.
#[tokio::test]
async fn an_index_build_names_the_transaction_it_waits_for() -> Outcome {
    let world = World::new(500).await?;
    let options: PgConnectOptions = world.url.parse()?;
    let limits = [
        ("statement_timeout", "2s"),
        ("lock_timeout", "1s"),
        ("idle_in_transaction_session_timeout", "2s"),
        ("default_transaction_isolation", "repeatable read"),
    ];
    let pool = PgPoolOptions::new().max_connections(3).connect_with(options.clone().options(limits)).await?;
    let describe = || {
        ColumnMigration::new(pool.clone(), "orders")
            .column("old_status", "new_status", "text")
            .forward("lower(trim(old_status))")
            .backward("upper(new_status)")
            .without_guard_trigger()
    };
    let plan = describe().index("by_status", "(new_status) where new_status <> 'void'").build()?;
    let a = world.instance("a", Some(plan)).await?;
    world.go("backfill").await?;
    let mut report = options.application_name("nightly").connect().await?;
    let mut long = report.begin_with(SNAPSHOT).await?;
    long.execute("select count(*) from orders").await?;
    world.ask("ramp:50").await?;
    world.waits_for("older transactions to end: pid").await?;
    world.waits_for("(nightly)").await?;
    let waited = "select exists (select from pg_stat_activity where query like 'create index concurrently%' \
        and state = 'active' and clock_timestamp() - query_start > '3 s')";
    let mut slowest = Duration::ZERO;
    while !is(&world, waited).await? {
        // One that waited for the build would wait until the report ends.
        slowest = slowest.max(timeout(SLOW, write(&a, &world.pool)).await??);
    }
    assert!(slowest < SLOW, "a writer waited for {slowest:?}");
    assert!(!is(&world, VALID).await?);
    long.rollback().await?;
    world.go("ramp:50").await?;
    assert!(is(&world, VALID).await?);
    // Under the same name: the same index in other words, and another one.
    let same = describe().index("by_status", "( new_status ) WHERE new_status != 'void'").build()?;
    same.run(Task::Scan, &a.migration).await?;
    for other in [
        describe().index("by_status", "(new_status)").build()?,
        describe().unique_index("by_status", "(new_status) where new_status <> 'void'").build()?,
    ] {
        let error = other.run(Task::Scan, &a.migration).await.expect_err("refused").to_string();
        assert!(
            error.contains("by_status exists as `USING btree") && error.contains("described as"),
            "{error}"
        );
    }
    Ok(())
}

/// An invalid index may be a build that the server continues after its instance has died.
#[tokio::test]
async fn an_index_that_is_being_built_is_not_dropped() -> Outcome {
    let world = World::new(100).await?;
    let a = world.instance("a", None).await?;
    let plan = world.describe().without_guard_trigger().index("by_status", "(new_status)").build()?;
    plan.run(Task::Expand, &a.migration).await?;
    world.go("backfill").await?;
    plan.run(Task::Backfill, &a.migration).await?;
    world.go("verify").await?;
    let mut long = world.pool.begin_with(SNAPSHOT).await?;
    long.execute("select count(*) from orders").await?;
    let pool = connected(&world, 1).await?;
    let build = tokio::spawn(async move {
        pool.execute("create index concurrently by_status on orders (new_status)").await
    });
    let begun = "select to_regclass('by_status') is not null";
    world.until("a build", async || is(&world, begun).await.unwrap_or(false)).await?;
    let error = plan.run(Task::Scan, &a.migration).await.expect_err("refused").to_string();
    assert!(error.contains("may still be building it: pid"), "{error}");
    long.rollback().await?;
    build.await??;
    plan.run(Task::Scan, &a.migration).await?;
    assert!(is(&world, VALID).await?);
    Ok(())
}

#[tokio::test]
async fn not_null_scans_no_rows_under_an_exclusive_lock() -> Outcome {
    let world = World::new(1_000).await?;
    world.pool.execute("alter table orders add new_status text default ''").await?;
    let plan = world.describe().without_guard_trigger().not_null().build()?;
    let tasks = plan.sql();
    let (_, contract) = tasks.iter().find(|(task, _)| *task == Task::Contract).ok_or("contract")?;
    let mut tx = world.pool.begin().await?;
    let scanned =
        "select coalesce((select seq_scan from pg_stat_xact_user_tables where relname = 'orders'), 0)";
    let before: i64 = sqlx::query_scalar(scanned).fetch_one(&mut *tx).await?;
    let mut scans = Vec::new();
    for statement in contract.split(";\n").filter(|statement| !statement.contains("drop column")) {
        tx.execute(AssertSqlSafe(statement)).await?;
        scans.push(sqlx::query_scalar::<_, i64>(scanned).fetch_one(&mut *tx).await? - before);
    }
    tx.commit().await?;
    assert_eq!(scans, [0, 1, 1, 1], "add, validate, set not null, drop: {contract}");
    assert!(is(&world, NOT_NULL).await?);
    Ok(())
}

#[tokio::test]
async fn not_null_and_the_drop_do_not_block_writers() -> Outcome {
    let world = World::new(20_000).await?;
    let a = world.instance("a", Some(world.describe().without_guard_trigger().not_null().build()?)).await?;
    world.go("retire").await?;
    world.approve().await?;
    world.ask("contract").await?;
    let (mut slowest, mut writes) = (Duration::ZERO, 0);
    while world.has_column("old_status").await {
        slowest = slowest.max(write(&a, &world.pool).await?);
        writes += 1;
    }
    assert!(writes > 2 && slowest < SLOW, "{writes} writes, the slowest took {slowest:?}");
    assert!(is(&world, NOT_NULL).await?);
    Ok(())
}

#[tokio::test]
async fn expand_statements_run_once_even_with_comments() -> Outcome {
    let world = World::new(1).await?;
    let a = world.instance("a", None).await?;
    let plan = world
        .describe()
        .expand_sql("create table notes (id int) -- of people")
        .expand_sql("create table more_notes (id int)")
        .build()?;
    plan.run(Task::Expand, &a.migration).await?;
    assert!(
        is(&world, "select to_regclass('notes') is not null and to_regclass('more_notes') is not null")
            .await?
    );
    // The column exists, its guard trigger does not.
    let armed = "select exists (select from pg_trigger where tgname like 'zzz\\_cutover\\_%\\_row')";
    let drop = format!("drop trigger zzz_cutover_{}_row on orders", world.id().await?);
    world.pool.execute(AssertSqlSafe(drop)).await?;
    plan.run(Task::Expand, &a.migration).await?;
    assert!(is(&world, armed).await?);
    Ok(())
}

#[tokio::test]
async fn a_dry_run_shows_every_statement() -> Outcome {
    let world = World::new(1).await?;
    let column = world.describe().expand_sql("comment on table orders is 'x'").not_null();
    let table = TableMigration::new(world.pool.clone(), "orders", "orders_2")
        .key("id")
        .create("create table orders_2 (id bigint primary key, note text)")
        .same("note");
    for tasks in [
        column.index("by_status", "(new_status)").build()?.sql(),
        table.index("by_status", "(note)").expand_sql("comment on table orders is 'x'").build()?.sql(),
    ] {
        let of = |wanted| tasks.iter().find(|(task, _)| *task == wanted).map_or("", |(_, sql)| sql);
        for (task, part) in [
            (Task::Expand, "comment on table"),
            (Task::Expand, "create trigger"),
            (Task::Scan, "create index concurrently \"by_status\" on"),
            (Task::Contract, "drop trigger if exists"),
            (Task::Contract, "drop function if exists cutover.guard_:migration()"),
        ] {
            assert!(of(task).contains(part), "{task:?} lacks {part}: {}", of(task));
        }
    }
    Ok(())
}

/// The guard trigger, an index build and a pinned writer must never wait for each other in a circle.
#[tokio::test]
async fn an_index_build_ends_while_external_writers_come_and_go() -> Outcome {
    let world = World::new(500).await?;
    let a = world.instance("a", Some(world.describe().index("by_status", "(new_status)").build()?)).await?;
    world.go("backfill").await?;
    world.filled().await?;
    let is_over = Arc::new(AtomicBool::new(false));
    // Two writers whose transactions of 300 ms overlap, so that there is always one.
    let mut writers = Vec::new();
    for id in [1, 2] {
        let (mut external, is_over) = (PgConnection::connect(&world.url).await?, is_over.clone());
        writers.push(tokio::spawn(async move {
            sleep(Duration::from_millis(150 * id)).await;
            let update = format!("begin; update orders set old_status = old_status || '.' where id = {id}");
            while !is_over.load(Ordering::SeqCst) {
                external.execute(AssertSqlSafe(&*update)).await?;
                sleep(Duration::from_millis(300)).await;
                external.execute("commit").await?;
            }
            Ok::<_, sqlx::Error>(())
        }));
    }
    world.ask("ramp:50").await?;
    let (mut slowest, began) = (Duration::ZERO, Instant::now());
    while !is(&world, VALID).await? {
        slowest = slowest.max(timeout(SLOW, write(&a, &world.pool)).await??);
        assert!(began.elapsed() < Duration::from_secs(120), "the build does not end");
    }
    is_over.store(true, Ordering::SeqCst);
    for writer in writers {
        writer.await??;
    }
    assert!(slowest < SLOW, "a pinned writer waited for {slowest:?}");
    world.go("ramp:50").await
}

#[tokio::test]
async fn a_second_index_build_names_the_running_one() -> Outcome {
    let world = World::new(10).await?;
    let a = world.instance("a", None).await?;
    let plan = world.describe().without_guard_trigger().index("by_status", "(new_status)").build()?;
    plan.run(Task::Expand, &a.migration).await?;
    world.go("backfill").await?;
    plan.run(Task::Backfill, &a.migration).await?;
    world.go("verify").await?;
    let mut long = world.pool.begin_with(SNAPSHOT).await?;
    long.execute("select count(*) from orders").await?;
    let (first, migration) = (plan.clone(), a.migration.clone());
    let building = tokio::spawn(async move { first.run(Task::Scan, &migration).await });
    let begun = "select to_regclass('by_status') is not null";
    world.until("a build", async || is(&world, begun).await.unwrap_or(false)).await?;
    let error = plan.run(Task::Scan, &a.migration).await.expect_err("refused").to_string();
    assert!(error.contains("another instance builds the indexes of migration status"), "{error}");
    long.rollback().await?;
    building.await??;
    Ok(())
}
