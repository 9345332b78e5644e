//! Rows of two tables.

use crate::world::{Fleet, Outcome, World};
use cutover::migration::admin::differences;
use cutover::migration::{BatchOptions, TableMigration, TableMigrationBuilder, map_each};
use cutover::migration::{Plan, Task};
use sqlx::{Executor, FromRow, PgPool};

fn describe(world: &World) -> TableMigrationBuilder {
    TableMigration::new(world.pool.clone(), "orders", "orders_2")
        .create("create table if not exists orders_2 (id bigint primary key, note text, status text)")
        .without("orders_id_seq")
        .batches(BatchOptions { min_rows: 100, max_rows: 500, ..BatchOptions::default() })
        .without_guard_trigger()
}

fn plan(world: &World) -> Outcome<TableMigration> {
    Ok(describe(world)
        .same("note")
        .column("status", "lower(trim(old_status))")
        .column_back("old_status", "upper(status)")
        .build()?)
}

/// The number of rows that only one of the tables has, by an independent comparison.
async fn apart(pool: &PgPool) -> Outcome<i64> {
    let old = "select id, note, lower(trim(old_status)) from orders";
    let new = "select id, note, status from orders_2";
    let query =
        format!("select count(*) from (({old} except {new}) union all ({new} except {old})) as apart");
    Ok(sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_one(pool).await?)
}

async fn backfilled(rows: i64) -> Outcome<(World, Fleet, TableMigration)> {
    let world = World::new(rows).await?;
    let a = world.instance("a", None).await?;
    let plan = plan(&world)?;
    plan.run(Task::Expand, &a.migration).await?;
    world.go("backfill").await?;
    Ok((world, a, plan))
}

#[tokio::test]
async fn a_copy_repairs_whatever_an_earlier_one_left() -> Outcome {
    let (world, a, plan) = backfilled(3_000).await?;
    // Left by an earlier copy: stale rows, and rows deleted since, below, between and above.
    world
        .pool
        .execute(
            "delete from orders where id in (1, 1000); \
             insert into orders_2 select g, null, 'stale' from generate_series(-700, 1200) g; \
             insert into orders_2 select g, null, 'stale' from generate_series(4000, 5200) g",
        )
        .await?;
    plan.run(Task::Backfill, &a.migration).await?;
    assert_eq!(apart(&world.pool).await?, 0);
    assert_eq!(
        sqlx::query_scalar::<_, i64>("select count(*) from orders_2").fetch_one(&world.pool).await?,
        2_998
    );
    world.go("verify").await?;
    plan.run(Task::Scan, &a.migration).await?;
    world.go("switch").await?;
    // The new side has authority now; the old side keeps its own spelling where it means the same.
    world
        .pool
        .execute(
            "update cutover.migrations set old_complete = false where name = 'status'; \
             update orders_2 set status = 'newer' where id = 7; delete from orders_2 where id = 8; \
             insert into orders_2 values (9000, 'n', 'added')",
        )
        .await?;
    plan.run(Task::ReverseBackfill, &a.migration).await?;
    assert_eq!(apart(&world.pool).await?, 0);
    let old: Vec<(i64, String)> =
        sqlx::query_as("select id, old_status from orders where id in (6, 7, 8, 9000) order by id")
            .fetch_all(&world.pool)
            .await?;
    assert_eq!(old, [(6, " LEGACY6 ".into()), (7, "NEWER".into()), (9000, "ADDED".into())]);
    Ok(())
}

#[tokio::test]
async fn a_row_deleted_during_its_batch_does_not_reappear() -> Outcome {
    let (world, a, plan) = backfilled(400).await?;
    let mut deleting = a.migration.begin(&world.pool).await?;
    deleting.execute("delete from orders where id = 50").await?;
    deleting.execute("delete from orders_2 where id = 50").await?;
    let mut writing = a.migration.begin(&world.pool).await?;
    writing.execute("update orders set old_status = 'NEWER' where id = 60").await?;
    writing.execute("update orders_2 set status = 'newer' where id = 60").await?;
    let (running, migration) = (plan.clone(), a.migration.clone());
    let work = tokio::spawn(async move { running.run(Task::Backfill, &migration).await });
    let waiters = "select exists (select 1 from pg_stat_activity where wait_event_type = 'Lock' \
        and datname = current_database() and query like 'insert into \"orders_2\"%')";
    world
        .until("a batch that waits for the row", async || {
            sqlx::query_scalar(waiters).fetch_one(&world.pool).await.unwrap_or(false)
        })
        .await?;
    deleting.commit().await?;
    writing.commit().await?;
    work.await??;
    assert_eq!(apart(&world.pool).await?, 0);
    let there = "select count(*) from orders_2 where id = 50 or status = 'newer'";
    assert_eq!(sqlx::query_scalar::<_, i64>(there).fetch_one(&world.pool).await?, 1);
    Ok(())
}

#[tokio::test]
async fn a_scan_finds_missing_extra_and_different_rows() -> Outcome {
    let (world, a, plan) = backfilled(2_000).await?;
    plan.run(Task::Backfill, &a.migration).await?;
    world.go("verify").await?;
    world
        .pool
        .execute(
            "delete from orders_2 where id = 5; insert into orders_2 values (7000, null, 'x'); \
             update orders_2 set status = 'forged' where id = 9",
        )
        .await?;
    // A row that is being written is not a difference.
    let mut writing = a.migration.begin(&world.pool).await?;
    writing.execute("insert into orders (old_status) values ('OPEN')").await?;
    let error = plan.run(Task::Scan, &a.migration).await.expect_err("refused").to_string();
    writing.rollback().await?;
    assert!(error.contains("3 rows"), "{error}");
    // A changed row is one row for the scan and two for the other comparison.
    assert_eq!(apart(&world.pool).await?, 4);
    let ledger = cutover::ledger::Ledger::open(world.url.parse()?).await?;
    let found = differences(&ledger, "status", 10).await?;
    let found: Vec<_> = found.iter().map(|row| (&*row.key[0], &*row.what, row.found.is_some())).collect();
    assert_eq!(found, [("5", "missing", false), ("9", "different", true), ("7000", "extra", true)]);
    Ok(())
}

#[derive(FromRow)]
struct Old {
    note: Option<String>,
    old_status: String,
}

#[derive(serde::Serialize)]
struct New {
    note: Option<String>,
    status: String,
}

#[tokio::test]
async fn a_mapping_in_rust_works_like_one_in_sql() -> Outcome {
    let world = World::new(1_500).await?;
    let a = world.instance("a", None).await?;
    let forward = map_each(|old: Old| match old.old_status.trim() {
        "" => Err("an empty status"),
        status => Ok(New { note: old.note, status: status.to_lowercase() }),
    });
    let plan = describe(&world)
        .forward_rows(&["note", "status"], forward)
        .column_back("note", "note")
        .column_back("old_status", "upper(status)")
        .build()?;
    plan.run(Task::Expand, &a.migration).await?;
    world.go("backfill").await?;
    world.pool.execute("update orders set old_status = ' ' where id in (3, 1400)").await?;
    let error = plan.run(Task::Backfill, &a.migration).await.expect_err("two bad rows").to_string();
    assert!(error.contains("2 rows could not be mapped") && error.contains("3: an empty status"), "{error}");
    world.pool.execute("update orders set old_status = 'fixed' where id in (3, 1400)").await?;
    plan.run(Task::Backfill, &a.migration).await?;
    assert_eq!(apart(&world.pool).await?, 0);
    world.go("verify").await?;
    world.pool.execute("update orders_2 set status = 'forged' where id = 9").await?;
    let error = plan.run(Task::Scan, &a.migration).await.expect_err("refused").to_string();
    assert!(error.contains("1 row ") && error.contains("[9]"), "{error}");
    world.pool.execute("update orders_2 set status = 'legacy9' where id = 9").await?;
    plan.run(Task::Scan, &a.migration).await?;
    Ok(())
}

#[tokio::test]
async fn the_old_table_is_dropped_unless_something_depends_on_it() -> Outcome {
    let world = World::new(10).await?;
    let _a = world.instance_of("a", plan(&world)?).await?;
    world.go("retire").await?;
    world.pool.execute("create view report as select id from orders").await?;
    world.approve().await?;
    world.go("contract").await?;
    world
        .waits_for("table public.orders cannot be dropped because other objects depend on it: view report")
        .await?;
    world.pool.execute("drop view report").await?;
    let gone = "select to_regclass('orders') is null";
    world
        .until("the old table to be dropped", async || {
            sqlx::query_scalar(gone).fetch_one(&world.pool).await.unwrap_or(false)
        })
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_table_may_have_more_columns_than_function_arguments() -> Outcome {
    let world = World::new(0).await?;
    let names: Vec<String> = (0..60).map(|number| format!("c{number}")).collect();
    let columns = names.iter().map(|name| format!("{name} int default 1")).collect::<Vec<_>>().join(", ");
    for table in ["wide", "wide_2"] {
        let create = format!("create table {table} (id bigint primary key, {columns})");
        world.pool.execute(sqlx::AssertSqlSafe(create)).await?;
    }
    world.pool.execute("insert into wide select generate_series(1, 30)").await?;
    let mut plan = TableMigration::new(world.pool.clone(), "wide", "wide_2");
    for name in &names {
        plan = plan.same(name);
    }
    let _a = world.instance_of("a", plan.build()?).await?;
    world.go("backfill").await?;
    world.filled().await?;
    world.pool.execute("update wide_2 set c59 = 2 where id = 7").await?;
    world.ask("ramp").await?;
    world.waits_for("the new side is not what `forward` computes from the old side, id in [7]").await?;
    Ok(())
}
