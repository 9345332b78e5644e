//! Rows that cannot be mapped, and rows that several instances work on.

use std::process::Command;
use std::time::Duration;

use crate::world::{Outcome, World};
use cutover::ledger::Ledger;
use cutover::migration::admin::{bad_rows, differences};
use cutover::migration::{BatchOptions, ColumnMigration, ColumnMigrationBuilder, map_each};
use cutover::migration::{Plan, Task};
use cutover_testkit::{Folder, Postgres, PostgresOptions, Process, Signal};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Executor, FromRow, PgPool};

fn describe(world: &World) -> ColumnMigrationBuilder {
    ColumnMigration::new(world.pool.clone(), "orders")
        .column("old_status", "new_status", "text")
        .forward("lower(trim(old_status))")
        .backward("upper(new_status)")
        .without_guard_trigger()
}

#[tokio::test]
async fn a_row_whose_expression_fails_is_set_aside() -> Outcome {
    let world = World::new(3_000).await?;
    world
        .pool
        .execute(
            "update orders set old_status = '0' where id in (1, 1499, 3000); \
             create function strict(v text) returns text immutable language plpgsql as $$ begin \
                 if v = '0' then raise exception 'no status: %', v; end if; return lower(trim(v)); end $$",
        )
        .await?;
    let plan = |bad_rows| {
        describe(&world)
            .forward("strict(old_status)")
            .batches(BatchOptions { bad_rows, ..BatchOptions::default() })
            .build()
    };
    let a = world.instance("a", None).await?;
    plan(3)?.run(Task::Expand, &a.migration).await?;
    world.go("backfill").await?;
    let error = plan(2)?.run(Task::Backfill, &a.migration).await.expect_err("too many").to_string();
    assert!(
        error.contains(
            "more than 2 rows could not be mapped (setting `BatchOptions::bad_rows`); the last one is 3000"
        ),
        "{error}"
    );
    let error = plan(3)?.run(Task::Backfill, &a.migration).await.expect_err("three").to_string();
    assert!(error.contains("3 rows could not be mapped") && error.contains("no status: 0"), "{error}");
    let ledger = Ledger::open(world.url.parse()?).await?;
    let keys: Vec<_> =
        bad_rows(&ledger, "status", 10).await?.into_iter().map(|row| row.key.concat()).collect();
    assert_eq!(keys, ["1", "1499", "3000"]);
    // All other rows are copied.
    let done = "select count(*) from orders where new_status is not distinct from lower(trim(old_status))";
    assert_eq!(sqlx::query_scalar::<_, i64>(done).fetch_one(&world.pool).await?, 2_997);
    let complete = "select new_complete from cutover.migrations where name = 'status'";
    assert!(!sqlx::query_scalar::<_, bool>(complete).fetch_one(&world.pool).await?);
    world.pool.execute("update orders set old_status = ' FIXED ' where id in (1, 1499); delete from orders where id = 3000").await?;
    plan(3)?.run(Task::Backfill, &a.migration).await?;
    assert!(sqlx::query_scalar::<_, bool>(complete).fetch_one(&world.pool).await?);
    assert_eq!(sqlx::query_scalar::<_, i64>(done).fetch_one(&world.pool).await?, 2_999);
    Ok(())
}

#[derive(FromRow)]
struct Row {
    old_status: Option<String>,
}

#[derive(FromRow)]
struct New {
    new_status: Option<String>,
}

#[tokio::test]
async fn a_column_is_mapped_in_rust_in_both_directions() -> Outcome {
    let world = World::new(2_000).await?;
    let a = world.instance("a", None).await?;
    let lower = map_each(|row: Row| Ok::<_, String>(row.old_status.map(|text| text.trim().to_lowercase())));
    let upper = map_each(|row: New| Ok::<_, String>(row.new_status.map(|text| text.to_uppercase())));
    let plan = describe(&world).forward_rows(lower).backward_rows(upper).sensitive().build()?;
    plan.run(Task::Expand, &a.migration).await?;
    world.go("backfill").await?;
    plan.run(Task::Backfill, &a.migration).await?;
    assert_eq!(world.row(77).await?.1.as_deref(), Some("legacy77"));
    world.go("verify").await?;
    world.pool.execute("update orders set new_status = 'forged' where id = 5").await?;
    let error = plan.run(Task::Scan, &a.migration).await.expect_err("one").to_string();
    assert!(error.contains("1 row ") && error.contains("[5]"), "{error}");
    let ledger = Ledger::open(world.url.parse()?).await?;
    let found = differences(&ledger, "status", 10).await?;
    assert_eq!((found[0].expected.as_deref(), found[0].found.as_deref()), (Some("\"…\""), Some("\"…\"")));
    world.pool.execute("update orders set new_status = 'legacy5' where id = 5").await?;
    plan.run(Task::Scan, &a.migration).await?;
    world.go("switch").await?;
    world.pool.execute("update cutover.migrations set old_complete = false where name = 'status'; update orders set new_status = 'newer' where id = 6").await?;
    plan.run(Task::ReverseBackfill, &a.migration).await?;
    assert_eq!(world.row(6).await?.0.as_deref(), Some("NEWER"));
    assert_eq!(world.row(7).await?.0.as_deref(), Some(" LEGACY7 "));
    Ok(())
}

#[tokio::test]
async fn a_way_back_that_fails_on_null_is_reported() -> Outcome {
    #[derive(FromRow)]
    struct Given {
        new_status: String,
    }
    let world = World::new(20).await?;
    world.pool.execute("update orders set old_status = null where id = 3").await?;
    let lower = map_each(|row: Row| Ok::<_, String>(row.old_status.map(|text| text.trim().to_lowercase())));
    let upper = map_each(|row: Given| Ok::<_, String>(Some(row.new_status.to_uppercase())));
    let plan = describe(&world).forward_rows(lower).backward_rows(upper).build()?;
    let _a = world.instance("a", Some(plan)).await?;
    world.go("verify").await?;
    world.ask("ramp").await?;
    world.waits_for("`forward` of `backward` does not give the new side's value back, id in [3]").await?;
    Ok(())
}

/// A plan with small batches whose sessions have the instance's name.
async fn plan_of(world: &World, name: &str) -> Outcome<ColumnMigration> {
    let options = world.url.parse::<PgConnectOptions>()?.application_name(name);
    let batches = BatchOptions {
        target: Duration::from_millis(20),
        min_rows: 200,
        max_rows: 500,
        ranges: 8,
        ..BatchOptions::default()
    };
    Ok(ColumnMigration::new(PgPool::connect_with(options).await?, "orders")
        .column("old_status", "new_status", "text")
        .forward("lower(trim(old_status))")
        .backward("upper(new_status)")
        .batches(batches)
        .without_guard_trigger()
        .build()?)
}

/// A table that records which instance wrote which row. Its trigger is slow, because the other instance looks for work only
/// every two seconds.
async fn signed(rows: i64) -> Outcome<World> {
    let world = World::new(rows).await?;
    let slowly = "create function slowly() returns trigger language plpgsql as $$ begin \
            perform pg_sleep(0.0001); return new; end $$; \
        create trigger slowly before update on orders for each row execute function slowly()";
    world.pool.execute(slowly).await?;
    world
        .pool
        .execute(
            "create table writers (name text, id bigint); \
             create function note() returns trigger language plpgsql as $$ begin \
                 insert into writers values (current_setting('application_name'), new.id); return new; end $$; \
             create trigger note after update on orders for each row execute function note()",
        )
        .await?;
    Ok(world)
}

/// How many rows each instance wrote, if each row was written once.
async fn signatures(world: &World, rows: i64) -> Outcome<Vec<(String, i64)>> {
    let writers = "select name, count(*) from writers group by name order by name";
    let done: Vec<(String, i64)> = sqlx::query_as(writers).fetch_all(&world.pool).await?;
    let distinct: i64 =
        sqlx::query_scalar("select count(distinct id) from writers").fetch_one(&world.pool).await?;
    assert_eq!((done.iter().map(|(_, rows)| rows).sum::<i64>(), distinct), (rows, rows), "{done:?}");
    Ok(done)
}

#[tokio::test]
async fn all_instances_take_part_and_copy_each_row_once() -> Outcome {
    let world = signed(20_000).await?;
    let _a = world.instance("a", Some(plan_of(&world, "a").await?)).await?;
    let _b = world.instance("b", Some(plan_of(&world, "b").await?)).await?;
    world.go("verify").await?;
    assert_eq!(signatures(&world, 20_000).await?.len(), 2);
    Ok(())
}

/// Not a test: the body of a separate process with one instance.
#[tokio::test]
#[ignore = "started by the next test"]
async fn process() -> Outcome {
    let (Ok(url), Ok(name)) = (std::env::var("ROWS_URL"), std::env::var("ROWS_NAME")) else { return Ok(()) };
    let world = World { pool: PgPool::connect(&url).await?, url };
    let _instance = world.instance(&name, Some(plan_of(&world, &name).await?)).await?;
    std::future::pending().await
}

#[tokio::test]
async fn a_killed_driver_skips_and_repeats_no_row() -> Outcome {
    let world = signed(20_000).await?;
    let folder = Folder::new("rows")?;
    let mut processes = Vec::new();
    for name in ["a", "b"] {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["--exact", "rows::process", "--ignored", "--nocapture", "--test-threads=1"])
            .env("ROWS_URL", &world.url)
            .env("ROWS_NAME", name);
        processes.push(Process::spawn(&folder, name, Signal::KILL, &command)?);
    }
    let ask =
        async |query: &'static str| sqlx::query_scalar(query).fetch_one(&world.pool).await.unwrap_or(false);
    let serving = "select count(*) = 2 from cutover.instances where admitted";
    world.until("two instances", async || ask(serving).await).await?;
    world.ask("backfill").await?;
    let half = "select count(distinct name) = 2 and count(*) > 1000 from writers";
    world.until("both at work", async || ask(half).await).await?;
    let driver = "select i.name from cutover.migrations m join cutover.instances i on i.id = m.driver \
        where m.name = 'status'";
    let driver: String = sqlx::query_scalar(driver).fetch_one(&world.pool).await?;
    let victim = processes.iter().find(|process| process.name() == driver).ok_or("a driver")?;
    victim.kill().await?;
    let open = "select exists (select 1 from cutover.jobs where finished_at is null)";
    assert!(ask(open).await, "it had ended before the driver was killed");
    world.filled().await?;
    signatures(&world, 20_000).await?;
    let differing =
        "select count(*) = 0 from orders where new_status is distinct from lower(trim(old_status))";
    assert!(ask(differing).await);
    for process in &processes {
        process.kill().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_crash_of_the_server_loses_batch_and_checkpoint_together() -> Outcome {
    // Commits that do not wait stay in memory for this long, unless another commit waits.
    let settings = vec![("wal_writer_delay".to_owned(), "10s".to_owned())];
    let postgres = Postgres::start(PostgresOptions { fsync: false, settings }).await?;
    let world = World::at(postgres.create_database("shop").await?, 50_000).await?;
    let options = BatchOptions { min_rows: 50, max_rows: 50, ranges: 1, ..BatchOptions::default() };
    let _a = world.instance("a", Some(describe(&world).batches(options).build()?)).await?;
    world.ask("backfill").await?;
    let done = async || -> Result<i64, sqlx::Error> {
        let done = "select coalesce(max(rows_done), 0) from cutover.jobs";
        sqlx::query_scalar(done).fetch_one(&world.pool).await
    };
    let mut lost = 0;
    // Not every crash loses a batch.
    for turn in 1..=20 {
        if turn > 3 && lost > 0 {
            break;
        }
        let mut before = 0;
        while before < turn * 2_000 {
            before = done().await?;
        }
        postgres.kill9().await?;
        postgres.restart().await?;
        // The copy goes on meanwhile, so checkpoint and rows have to be of one snapshot.
        let (after, consistent): (i64, bool) = sqlx::query_as(
            "select rows_done, not exists (select from orders where id <= r.checkpoint[1]::bigint \
                 and new_status is distinct from lower(trim(old_status))) \
             from cutover.jobs j join cutover.job_ranges r on r.job_id = j.id",
        )
        .fetch_one(&world.pool)
        .await?;
        assert!(consistent, "rows below the checkpoint are not copied");
        lost += i64::from(after < before);
    }
    assert!(lost > 0, "no crash lost a batch, so the test shows nothing");
    world.filled().await?;
    let differing = "select count(*) from orders where new_status is distinct from lower(trim(old_status))";
    let differing: i64 = sqlx::query_scalar(differing).fetch_one(&world.pool).await?;
    assert_eq!(differing, 0);
    Ok(())
}
