//! Schema and rows of a column migration.

use std::time::{Duration, Instant};

use crate::world::{Fleet, Outcome, World};
use cutover::migration::ColumnMigration;
use cutover::migration::{Error, Plan, PlanError, Task};
use sqlx::{Connection, Executor, PgConnection};

/// The number of rows whose sides differ.
async fn differing(world: &World) -> Outcome<i64> {
    let query = "select count(*) from orders where new_status is distinct from lower(trim(old_status))";
    Ok(sqlx::query_scalar(query).fetch_one(&world.pool).await?)
}

/// The newest job of this kind: id, rows done, rows changed, whether it has finished.
async fn job(world: &World, kind: &str) -> Outcome<(i64, i64, i64, bool)> {
    let query = "select id, rows_done, rows_changed, finished_at is not null from cutover.jobs \
        where kind = $1 order by id desc limit 1";
    Ok(sqlx::query_as(query).bind(kind).fetch_one(&world.pool).await?)
}

/// An instance whose driver moves the phase and leaves the work to the test; the new column exists.
async fn by_hand(world: &World) -> Outcome<(Fleet, ColumnMigration)> {
    let a = world.instance("a", None).await?;
    let plan = world.plan()?;
    plan.run(Task::Expand, &a.migration).await?;
    Ok((a, plan))
}

/// Writes both columns as a service does, in a transaction that stays open.
async fn write(a: &Fleet, world: &World, id: i64) -> Result<cutover::migration::PinnedTx, Error> {
    let mut tx = a.migration.begin(&world.pool).await?;
    sqlx::query("update orders set old_status = 'NEWER', new_status = 'newer' where id = $1")
        .bind(id)
        .execute(&mut *tx)
        .await?;
    Ok(tx)
}

/// Runs the backfill and drops it as soon as some batches are done.
async fn half_a_backfill(world: &World, a: &Fleet, plan: &ColumnMigration) -> Outcome<(i64, i64)> {
    let (running, migration) = (plan.clone(), a.migration.clone());
    let work = tokio::spawn(async move { running.run(Task::Backfill, &migration).await });
    world.until("some batches", async || job(world, "backfill").await.is_ok_and(|job| job.1 > 1_000)).await?;
    work.abort();
    assert!(work.await.is_err_and(|error| error.is_cancelled()), "the backfill ended before it was dropped");
    let (id, done, _, ended) = job(world, "backfill").await?;
    assert!(!ended);
    Ok((id, done))
}

#[tokio::test]
async fn a_backfill_keeps_concurrent_writes_and_deletes() -> Outcome {
    let world = World::new(3_000).await?;
    let (a, plan) = by_hand(&world).await?;
    world.go("backfill").await?;
    let written = write(&a, &world, 50).await?;
    let mut deleted = a.migration.begin(&world.pool).await?;
    deleted.execute("delete from orders where id = 1500").await?;
    let (running, migration) = (plan.clone(), a.migration.clone());
    let work = tokio::spawn(async move { running.run(Task::Backfill, &migration).await });
    let waiters = "select exists (select 1 from pg_stat_activity where wait_event_type = 'Lock' \
        and datname = current_database() and query like 'update \"orders\"%')";
    world
        .until("a batch that waits for the row", async || {
            sqlx::query_scalar(waiters).fetch_one(&world.pool).await.unwrap_or(false)
        })
        .await?;
    written.commit().await?;
    deleted.commit().await?;
    work.await??;
    assert_eq!(world.row(50).await?, (Some("NEWER".into()), Some("newer".into())));
    assert!(world.row(1500).await.is_err(), "the deleted row came back");
    assert_eq!(differing(&world).await?, 0);
    let (_, done, changed, ended) = job(&world, "backfill").await?;
    // The deleted row was counted if it was in the batch that waited.
    assert!((2_999..=3_000).contains(&done), "{done}");
    assert_eq!((changed, ended), (2_998, true));
    Ok(())
}

#[tokio::test]
async fn a_second_backfill_replaces_stale_values() -> Outcome {
    let world = World::new(10_000).await?;
    let (a, plan) = by_hand(&world).await?;
    world.go("backfill").await?;
    // The first backfill gets as far as row 1,000 at least.
    let (first, _) = half_a_backfill(&world, &a, &plan).await?;
    world.go("off").await?;
    let mut tx = a.migration.begin(&world.pool).await?;
    tx.execute("update orders set old_status = 'LATER' where id <= 10").await?;
    tx.commit().await?;
    world.go("backfill").await?;
    plan.run(Task::Backfill, &a.migration).await?;
    assert_eq!(world.row(3).await?, (Some("LATER".into()), Some("later".into())));
    assert_eq!(differing(&world).await?, 0);
    let (second, done, _, ended) = job(&world, "backfill").await?;
    assert!(second > first && ended, "the job of the first backfill was continued");
    assert_eq!(done, 10_000);
    Ok(())
}

#[tokio::test]
async fn another_instance_continues_a_killed_backfill() -> Outcome {
    let world = World::new(20_000).await?;
    let (a, plan) = by_hand(&world).await?;
    world.go("backfill").await?;
    let (first, half) = half_a_backfill(&world, &a, &plan).await?;
    assert!(half < 20_000, "the backfill was complete");
    let b = world.instance("b", None).await?;
    a.agent.leave().await?;
    plan.run(Task::Backfill, &b.migration).await?;
    let (second, done, changed, ended) = job(&world, "backfill").await?;
    assert_eq!((second, ended), (first, true));
    // Each row once: checkpoint and counters commit with the batch.
    assert_eq!((done, changed), (20_000, 20_000));
    assert_eq!(differing(&world).await?, 0);
    Ok(())
}

#[tokio::test]
async fn work_of_a_phase_that_was_left_is_refused() -> Outcome {
    let world = World::new(100).await?;
    let (a, plan) = by_hand(&world).await?;
    for (task, phase) in [
        (Task::Backfill, "expand"),
        (Task::Scan, "expand"),
        (Task::ReverseBackfill, "expand"),
        (Task::Contract, "expand"),
        (Task::Expand, "expand"),
        (Task::ReverseBackfill, "backfill"),
    ] {
        world.go(phase).await?;
        let error = plan.run(task, &a.migration).await.expect_err("refused");
        assert!(matches!(error, PlanError::PhaseLeft), "{task:?} in {phase}: {error}");
    }
    assert_eq!(differing(&world).await?, 100);
    Ok(())
}

#[tokio::test]
async fn a_scan_names_differing_rows_and_holds_the_migration() -> Outcome {
    let world = World::new(5_000).await?;
    let _a = world.instance("a", Some(world.plan()?)).await?;
    world.go("backfill").await?;
    world.until("the backfill's end", async || job(&world, "backfill").await.is_ok_and(|job| job.3)).await?;
    world.pool.execute("update orders set new_status = 'forged' where id in (7, 4321)").await?;
    world.ask("ramp").await?;
    world.waits_for("2 rows of \"orders\" differ").await?;
    world.waits_for("id in [7, 4321]").await?;
    world.go("verify").await?;
    world.pool.execute("update orders set new_status = lower(trim(old_status))").await?;
    world.go("ramp").await?;
    Ok(())
}

#[tokio::test]
async fn a_scan_finds_values_that_do_not_survive_the_way_back() -> Outcome {
    let world = World::new(2_000).await?;
    let (a, plan) = by_hand(&world).await?;
    world.go("backfill").await?;
    plan.run(Task::Backfill, &a.migration).await?;
    world.go("verify").await?;
    plan.run(Task::Scan, &a.migration).await?;
    let describe = || ColumnMigration::new(world.pool.clone(), "orders").key("id");
    let lossy = describe()
        .column("old_status", "new_status", "text")
        .forward("lower(trim(old_status))")
        .backward("left(upper(new_status), 9)")
        .build()?;
    let error = lossy.run(Task::Scan, &a.migration).await.expect_err("refused").to_string();
    // `legacy` and four digits are ten letters.
    assert!(error.contains("1001 rows") && error.contains("[1000, 1001, 1002, 1003, 1004]"), "{error}");
    let untyped = describe()
        .column("old_status", "new_status", "text")
        .forward("lower(trim(old_status))")
        .backward("nonsense(new_status)")
        .build()?;
    let error = untyped.run(Task::Scan, &a.migration).await.expect_err("refused").to_string();
    assert!(error.contains("nonsense"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_column_with_dependents_is_not_dropped() -> Outcome {
    let world = World::new(10).await?;
    let plan = world
        .describe()
        .without_guard_trigger()
        .without("by_note")
        .without("by_status")
        .without("report")
        .build()?;
    let _a = world.instance("a", Some(plan)).await?;
    world.pool.execute("create view report as select id, old_status from orders").await?;
    world.pool.execute("create unique index by_note on orders (note, old_status)").await?;
    world.pool.execute("create index by_status on orders (old_status)").await?;
    world.go("retire").await?;
    world.approve().await?;
    world.go("contract").await?;
    world.waits_for("index by_note, view report").await?;
    assert!(world.has_column("old_status").await);
    world.pool.execute("drop view report; drop index by_note").await?;
    world.until("the old column is gone", async || !world.has_column("old_status").await).await?;
    Ok(())
}

#[tokio::test]
async fn ddl_does_not_queue_others_behind_a_long_transaction() -> Outcome {
    let world = World::new(10).await?;
    let a = world.instance("a", None).await?;
    let plan = world.plan()?;
    let mut long = world.pool.begin().await?;
    long.execute("select count(*) from orders").await?;
    let (running, migration) = (plan.clone(), a.migration.clone());
    let work = tokio::spawn(async move { running.run(Task::Expand, &migration).await });
    let mut rounds = Vec::new();
    let mut reader = PgConnection::connect(&world.url).await?;
    while !work.is_finished() {
        let began = Instant::now();
        reader.execute("select count(*) from orders").await?;
        let mut tx = a.migration.begin(&world.pool).await?;
        tx.execute("update orders set note = 'written' where id = 3").await?;
        tx.commit().await?;
        rounds.push(began.elapsed());
    }
    let error = work.await?.expect_err("refused").to_string();
    assert!(error.contains("could not acquire the lock") && error.contains("pid "), "{error}");
    // Each attempt waits for its lock for 200 ms. A busy machine slows some rounds down.
    rounds.retain(|round| *round > Duration::from_millis(100));
    let shortest = rounds.iter().min().ok_or("no reader or writer waited")?;
    assert!(*shortest < Duration::from_millis(1_000), "a reader and a writer waited for {shortest:?}");
    assert!(rounds.iter().all(|round| *round < Duration::from_secs(15)), "{rounds:?}");
    long.rollback().await?;
    plan.run(Task::Expand, &a.migration).await?;
    assert!(world.has_column("new_status").await);
    Ok(())
}

#[tokio::test]
async fn an_unsuitable_table_is_refused_with_every_reason() -> Outcome {
    let world = World::new(1).await?;
    let a = world.instance("a", None).await?;
    world.pool.execute("create table odd (id text, code text not null)").await?;
    let plan = |table, key, forward| {
        ColumnMigration::new(world.pool.clone(), table)
            .key(key)
            .column("code", "code_2", "text")
            .forward(forward)
            .backward("code_2")
            .build()
    };
    let mut refusals = Vec::new();
    for plan in [plan("missing", "id", "code")?, plan("odd", "id", "code")?, plan("orders", "nr", "code")?] {
        refusals.push(plan.run(Task::Expand, &a.migration).await.expect_err("refused").to_string());
    }
    assert!(refusals[0].contains("table \"missing\" does not exist"), "{refusals:?}");
    for part in ["can be null", "has no unique index", "drop not null"] {
        assert!(refusals[1].contains(part), "{part}: {refusals:?}");
    }
    for part in ["key column \"nr\" does not exist", "column \"code\" of \"orders\" does not exist"] {
        assert!(refusals[2].contains(part), "{part}: {refusals:?}");
    }
    world
        .pool
        .execute("alter table odd alter code drop not null; alter table odd add k int primary key")
        .await?;
    let error = plan("odd", "k", "code + nothing")?.run(Task::Expand, &a.migration).await;
    assert!(error.expect_err("refused").to_string().contains("nothing"));
    Ok(())
}

#[tokio::test]
async fn a_role_without_rights_gets_the_statement_for_the_owner() -> Outcome {
    let world = World::new(1).await?;
    let a = world.instance("a", None).await?;
    let role = format!("app_{}", std::process::id());
    for statement in [
        format!("create role {role} login"),
        format!("grant usage on schema cutover to {role}"),
        format!("grant all on all tables in schema cutover to {role}"),
        format!("grant select, insert, update, delete on orders to {role}"),
    ] {
        world.pool.execute(sqlx::AssertSqlSafe(statement)).await?;
    }
    let pool = sqlx::PgPool::connect(&world.url.replace("postgres@", &format!("{role}@"))).await?;
    let plan = ColumnMigration::new(pool, "orders")
        .key("id")
        .column("old_status", "new_status", "text")
        .forward("old_status")
        .backward("new_status")
        .build()?;
    let error = plan.run(Task::Expand, &a.migration).await.expect_err("refused").to_string();
    assert!(error.contains("let the owner of the table run `alter table \"orders\" add column"), "{error}");
    Ok(())
}
