//! What external writers can rely on, and which moves do not wait for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cutover::migration::{ColumnMigration, Isolation, TableMigration};
use sqlx::{Connection, Executor, PgConnection};
use tokio::task::JoinSet;

use crate::world::{Outcome, World};

async fn external(world: &World) -> Outcome<PgConnection> {
    Ok(PgConnection::connect(&world.url).await?)
}

fn text(value: &str) -> Option<String> {
    Some(value.to_owned())
}

async fn count(world: &World, query: &'static str) -> Outcome<i64> {
    Ok(sqlx::query_scalar(query).fetch_one(&world.pool).await?)
}

/// Customers, and their orders in a table that moves to another one.
async fn customers(world: &World, orders: &'static str) -> Outcome<TableMigration> {
    world
        .pool
        .execute(
            "create table customers (id bigint primary key); insert into customers values (1), (2), (3), (4)",
        )
        .await?;
    world.pool.execute(orders).await?;
    world
        .pool
        .execute("insert into bills select g, 1 + g % 4, 'B' || g from generate_series(1, 40) g")
        .await?;
    Ok(TableMigration::new(world.pool.clone(), "bills", "bills_2")
        .create("create table bills_2 (id bigint primary key, customer bigint, code text)")
        .same("customer")
        .column("code", "lower(code)")
        .column_back("code", "upper(code)")
        .without("bills_customer_fkey")
        .build()?)
}

const CASCADES: &str = "create table bills (id bigint primary key, \
    customer bigint references customers on delete cascade on update cascade, code text)";

/// The rows of the two tables that are not the same.
const APART: &str = "select count(*) from bills full join bills_2 using (id) \
    where bills.customer is distinct from bills_2.customer or bills_2.code is distinct from lower(bills.code)";

#[tokio::test]
async fn an_insert_of_one_side_is_kept_whatever_the_default() -> Outcome {
    let world = World::new(10).await?;
    let plan = world
        .describe()
        .expand_sql(
            "alter table orders alter new_status set default 'new', alter old_status set default 'OLD'",
        )
        .build()?;
    let _a = world.instance("a", Some(plan)).await?;
    let mut job = external(&world).await?;
    for phase in ["expand", "backfill", "verify", "ramp:50", "switch"] {
        world.go(phase).await?;
        for (insert, row) in [
            ("(old_status) values (' PAID ')", [" PAID ", "paid"]),
            ("(new_status) values ('paid')", ["PAID", "paid"]),
            // The old value has another spelling, and is kept.
            ("(old_status, new_status) values (' PAID ', 'paid')", [" PAID ", "paid"]),
            ("default values", if phase == "switch" { ["NEW", "new"] } else { ["OLD", "old"] }),
        ] {
            let insert = sqlx::AssertSqlSafe(format!("insert into orders {insert} returning id"));
            let id: i64 = sqlx::query_scalar(insert).fetch_one(&mut job).await?;
            assert_eq!(world.row(id).await?, (text(row[0]), text(row[1])), "{phase}");
        }
        for (upsert, row) in [
            (
                "insert into orders (id, old_status) values (1, ' UP ') on conflict (id) do update set old_status = excluded.old_status",
                [" UP ", "up"],
            ),
            (
                "insert into orders (id, new_status) values (1, 'side') on conflict (id) do update set new_status = excluded.new_status",
                ["SIDE", "side"],
            ),
        ] {
            let upsert = upsert.replacen("values", "overriding system value values", 1);
            job.execute(sqlx::AssertSqlSafe(upsert)).await?;
            assert_eq!(world.row(1).await?, (text(row[0]), text(row[1])), "{phase}");
        }
    }
    // A default that gives another value each time tells nothing, so authority decides.
    job.execute("alter table orders alter new_status set default gen_random_uuid()::text").await?;
    let by_new = "insert into orders (new_status) values ('void') returning id";
    let id: i64 = sqlx::query_scalar(by_new).fetch_one(&mut job).await?;
    assert_eq!(world.row(id).await?, (text("VOID"), text("void")));
    Ok(())
}

/// The columns that the writer leaves alone may not be copied yet.
#[tokio::test]
async fn a_write_of_one_column_keeps_the_others_of_its_side() -> Outcome {
    let world = World::new(2).await?;
    world.pool.execute("alter table orders add old_place text default 'BERLIN'").await?;
    let plan = ColumnMigration::new(world.pool.clone(), "orders")
        .new_column("new_status", "text", "lower(trim(old_status))")
        .new_column("new_place", "text", "lower(old_place)")
        .old_column("old_status", "upper(new_status)")
        .old_column("old_place", "upper(new_place)")
        .build()?;
    let a = world.instance("a", Some(plan)).await?;
    let row = "select old_status, old_place, new_status, new_place from orders where id = 1";
    let row =
        async || sqlx::query_as::<_, (String, String, String, String)>(row).fetch_one(&world.pool).await;
    let is = |values: [&str; 4]| values.map(str::to_owned).into();
    world.go("expand").await?;
    world.pool.execute("update orders set new_status = 'paid' where id = 1").await?;
    assert_eq!(row().await?, is(["PAID", "BERLIN", "paid", "berlin"]));
    world.go("retire").await?;
    let mut tx = a.migration.begin(&world.pool).await?;
    tx.execute("update orders set new_status = 'void', new_place = 'rome'").await?;
    tx.commit().await?;
    // The copy back fails while it cannot lock a row of its only batch.
    let mut session = external(&world).await?;
    session.execute("begin; select from orders where id = 2 for update").await?;
    world.go("switch").await?;
    world.pool.execute("update orders set old_status = ' DONE ' where id = 1").await?;
    assert_eq!(row().await?, is([" DONE ", "ROME", "done", "rome"]));
    session.execute("rollback").await?;
    world.go("ramp:50").await
}

/// A domain checks the default. Its constraints run with the rights of the trigger's owner, so only built-in functions may.
#[tokio::test]
async fn a_default_of_a_domain_tells_what_an_insert_named() -> Outcome {
    let world = World::new(1).await?;
    world
        .pool
        .execute(
            "create domain short as text check (length(value) < 20); \
             create domain status as short check (value <> 'none' or value = any ('{x,y}')); \
             create function fits(text) returns boolean language sql immutable return $1 <> ''; \
             create domain fitting as text check (fits(value)); \
             alter table orders alter old_status type status, alter old_status set default 'OLD'",
        )
        .await?;
    let _a = world.instance("a", Some(world.describe().without("default").build()?)).await?;
    world.go("switch").await?;
    let mut job = external(&world).await?;
    let insert = "insert into orders (old_status) values (' PAID ') returning id";
    let id: i64 = sqlx::query_scalar(insert).fetch_one(&mut job).await?;
    assert_eq!(world.row(id).await?, (text(" PAID "), text("paid")));
    let insert = "insert into orders (new_status) values ('void') returning id";
    let id: i64 = sqlx::query_scalar(insert).fetch_one(&mut job).await?;
    assert_eq!(world.row(id).await?, (text("VOID"), text("void")));
    job.execute("create table others (old_status fitting default 'OLD'::fitting)").await?;
    let known = "select cutover.comparison_with_default('others'::regclass, 'old_status') is not null";
    assert!(!sqlx::query_scalar::<_, bool>(known).fetch_one(&mut job).await?);
    Ok(())
}

#[tokio::test]
async fn foreign_key_actions_reach_both_sides_within_a_pin() -> Outcome {
    let world = World::new(0).await?;
    let plan = customers(&world, CASCADES).await?;
    let a = world.instance_of("a", plan).await?;
    world.go("verify").await?;
    let mut tx = a.migration.begin(&world.pool).await?;
    tx.execute("delete from customers where id = 1; update customers set id = 20 where id = 2").await?;
    tx.commit().await?;
    external(&world).await?.execute("update customers set id = 30 where id = 3").await?;
    assert_eq!(count(&world, "select count(*) from bills_2").await?, 30);
    assert_eq!(count(&world, APART).await?, 0);
    world.go("switch").await?;
    world.go("retire").await?;
    // Writes that a foreign key makes are never refused, others are.
    let mut job = external(&world).await?;
    job.execute("delete from customers where id = 4; update customers set id = 31 where id = 30").await?;
    let mut tx = a.migration.begin(&world.pool).await?;
    tx.execute("delete from customers where id = 31").await?;
    tx.commit().await?;
    let error = job.execute("delete from bills where customer = 20").await.expect_err("refused");
    assert_eq!(error.as_database_error().and_then(|error| error.code()).as_deref(), Some("ZC003"));
    Ok(())
}

#[tokio::test]
async fn the_replica_role_does_not_bypass_the_guard() -> Outcome {
    let world = World::new(10).await?;
    let _a = world.instance("a", Some(world.describe().build()?)).await?;
    world.go("verify").await?;
    let mut job = external(&world).await?;
    job.execute(
        "set session_replication_role = replica; update orders set old_status = ' PAID ' where id = 1",
    )
    .await?;
    assert_eq!(world.row(1).await?, (text(" PAID "), text("paid")));
    Ok(())
}

#[tokio::test]
async fn a_disabled_guard_is_named_and_holds_the_way_forward() -> Outcome {
    let world = World::new(10).await?;
    let _a = world.brief("a", world.describe().build()?).await?;
    world.go("verify").await?;
    crate::repairs::scanned(&world).await?;
    let mut job = external(&world).await?;
    job.execute("alter table orders disable trigger user").await?;
    job.execute("update orders set old_status = ' PAID ' where id = 1").await?;
    let unseen =
        "select count(*) from cutover.external_writes where application like '%guard trigger is disabled'";
    world
        .until("the disabled trigger to be noticed", async || count(&world, unseen).await.unwrap_or(0) > 0)
        .await?;
    world.ask("ramp").await?;
    world.waits_for("without external writes that the guard trigger cannot mirror").await?;
    let enable = "do $$ declare name text; begin \
        for name in select tgname from pg_trigger where tgrelid = 'orders'::regclass and not tgisinternal loop \
            execute format('alter table orders enable always trigger %I', name); end loop; end $$";
    job.execute(enable).await?;
    // The scan of before does not count, and the next one finds the row.
    world.waits_for("the new side is not what `forward` computes from the old side, id in [1]").await?;
    job.execute("update orders set old_status = 'PAID' where id = 1").await?;
    world.go("ramp").await?;
    assert_eq!(world.row(1).await?, (text("PAID"), text("paid")));
    world.go("switch").await?;
    job.execute("alter table orders disable trigger user").await?;
    world.ask("retire").await?;
    let part = "to unblock: `alter table orders enable always trigger";
    world.waits_for(part).await?;
    let query = "select waits_for from cutover.migrations where name = 'status'";
    let reason: String = sqlx::query_scalar(query).fetch_one(&world.pool).await?;
    let statements: Vec<&str> = reason.split('`').filter(|text| text.starts_with("alter table")).collect();
    assert!(!statements.is_empty());
    for statement in statements {
        job.execute(sqlx::AssertSqlSafe(statement)).await?;
    }
    world.waits_for("rows may have been written past the guard trigger").await?;
    world.go("verify").await?;
    world.go("retire").await?;
    Ok(())
}

#[tokio::test]
async fn a_truncate_of_one_partition_reaches_both_tables() -> Outcome {
    let world = World::new(0).await?;
    let partitioned = "create table bills (id bigint primary key, customer bigint, code text) partition by range (id); \
        create table bills_low partition of bills for values from (0) to (21); \
        create table bills_high partition of bills for values from (21) to (100)";
    let plan = customers(&world, partitioned).await?;
    let _a = world.brief("a", plan).await?;
    world.go("verify").await?;
    let mut job = external(&world).await?;
    job.execute("truncate bills_low").await?;
    assert_eq!(count(&world, "select count(*) from bills_2").await?, 20);
    assert_eq!(count(&world, APART).await?, 0);
    // A partition that is attached later has the trigger for its rows, but its rows came past it.
    job.execute(
        "create table bills_late (like bills); insert into bills_late values (200, 1, 'L'); \
         alter table bills attach partition bills_late for values from (100) to (300); \
         insert into bills values (201, 2, 'LATE')",
    )
    .await?;
    assert_eq!(count(&world, "select count(*) from bills_2 where id = 201").await?, 1);
    world.ask("ramp").await?;
    world.waits_for("the new side lacks rows").await?;
    job.execute("update bills set code = code where id = 200").await?;
    world.go("ramp").await?;
    Ok(())
}

/// Under REPEATABLE READ the phase may come from an old snapshot.
#[tokio::test]
async fn an_open_external_snapshot_does_not_hold_the_way_back() -> Outcome {
    let world = World::new(10).await?;
    let _a = world.instance("a", Some(world.describe().build()?)).await?;
    world.go("ramp").await?;
    let mut job = external(&world).await?;
    job.execute("begin isolation level repeatable read; update orders set old_status = ' A ' where id = 1")
        .await?;
    world.go("verify").await?;
    job.execute("update orders set old_status = ' B ' where id = 2; commit").await?;
    assert_eq!(world.row(2).await?, (text(" B "), text("b")));
    Ok(())
}

/// In `retire` an insert of the new side is not mapped, and a copy back does not see it before it is committed.
#[tokio::test]
async fn a_copy_back_waits_for_an_open_external_insert() -> Outcome {
    let world = World::new(10).await?;
    let _a = world.instance("a", Some(world.describe().build()?)).await?;
    world.go("retire").await?;
    let mut job = external(&world).await?;
    let insert = "begin; insert into orders (id, new_status) overriding system value values (100, 'open')";
    job.execute(insert).await?;
    world.go("switch").await?;
    world.ask("ramp").await?;
    world.waits_for("a transaction of an external writer").await?;
    job.execute("commit").await?;
    world.go("ramp").await?;
    assert_eq!(world.row(100).await?, (text("OPEN"), text("open")));
    Ok(())
}

/// It would be mapped by the rules of the phase before.
#[tokio::test]
async fn a_write_with_a_snapshot_from_before_a_move_is_repeated() -> Outcome {
    let world = World::new(10).await?;
    let _a = world.instance("a", Some(world.describe().build()?)).await?;
    world.go("switch").await?;
    let mut job = external(&world).await?;
    job.execute("begin isolation level repeatable read; select from orders limit 1").await?;
    world.go("retire").await?;
    let write = "update orders set old_status = ' A ' where id = 1";
    let error = job.execute(write).await.expect_err("repeated");
    assert_eq!(error.as_database_error().and_then(|error| error.code()).as_deref(), Some("40001"));
    job.execute("rollback").await?;
    let error = job.execute(write).await.expect_err("refused");
    assert_eq!(error.as_database_error().and_then(|error| error.code()).as_deref(), Some("ZC003"));
    Ok(())
}

#[tokio::test]
async fn steady_pinned_snapshots_do_not_keep_a_move_waiting() -> Outcome {
    let world = World::new(80).await?;
    let a = world.instance("a", Some(world.describe().build()?)).await?;
    world.go("verify").await?;
    let mut writers = JoinSet::new();
    let (pool, done) = (world.pool.clone(), Arc::<AtomicBool>::default());
    for number in 0..8_i64 {
        let (pool, migration, done) = (pool.clone(), a.migration.clone(), done.clone());
        writers.spawn(async move {
            let mut committed = 0;
            while !done.load(Ordering::Relaxed) {
                let Ok(mut tx) = migration.begin_isolated(&pool, Isolation::RepeatableRead).await else {
                    continue;
                };
                let write = "update orders set note = 'n' where id = $1 + 1";
                let wrote = sqlx::query(write).bind(number).execute(&mut *tx).await;
                let slept = sqlx::query("select pg_sleep(0.02)").execute(&mut *tx).await;
                if wrote.is_ok() && slept.is_ok() && tx.commit().await.is_ok() {
                    committed += 1;
                }
            }
            committed
        });
    }
    let began = Instant::now();
    let outcome = world.go_within("ramp", Duration::from_secs(40)).await;
    done.store(true, Ordering::Relaxed);
    let committed: i32 = writers.join_all().await.into_iter().sum();
    outcome?;
    assert!(committed > 0, "no writer made progress in {:?}", began.elapsed());
    Ok(())
}
